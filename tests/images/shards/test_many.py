"""A simulated set of 10^8 images: the order of an epoch, and where its images lie."""

import json
import os
import subprocess
import sys

import pytest
from commands import environment

WALK = """
import json, resource
import numpy as np
import torch
from simclr_pl.core.randomness import epoch_order
from simclr_pl.images.readers.shards import ShardImages

size, each = 10**8, 10**4
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = ShardImages.__new__(ShardImages)
source.first = np.arange(0, size + 1, each)
source.offsets = np.broadcast_to(np.int64(512), size)
source.sizes = np.broadcast_to(np.int64(90_000), size)
order = epoch_order(0, 1, size)
seen, images = np.zeros(size, bool), 0
for batch in order.split(4096):
    images += len(batch)
    seen[batch.numpy()] = True
    number = int(batch[0])
    assert source._range(number) == (number // each, 512, 90_000)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([images, bool(seen.all()), peak * 1024]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="asks the system for the memory used")
def test_a_hundred_million_images_are_walked_in_bounded_memory() -> None:
    command = [sys.executable, "-c", WALK]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    images, complete, peak = json.loads(done.stdout)
    assert (images, complete) == (10**8, True)
    assert peak < 50 * 10**8
