"""A simulated set of 10^8 images: an epoch's plan, and where its images lie."""

import json
import os
import subprocess
import sys

import pytest
from commands import environment

WALK = """
import json, resource
from time import process_time
import numpy as np
from simclr_pl.core.data.loaders import TrainLoader
from simclr_pl.images.readers.shards import ShardImages

class Walked(ShardImages):
    def __len__(self):
        return size

    def batches(self, plan, epoch, cut, *, training):
        for batch in plan:
            seen[batch.numpy()] = True
            number = int(batch[0])
            assert self._range(number) == (number // each, 512, 90_000)
            yield batch

size, each = 10**8, 10**4
seen = np.zeros(size, bool)
source = Walked.__new__(Walked)
source.first = np.arange(0, size + 1, each)
source.offsets = np.broadcast_to(np.int64(512), size)
source.sizes = np.broadcast_to(np.int64(90_000), size)
before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, process_time()
steps = sum(1 for _ in TrainLoader(source, 4096, 0, 1, 0, lambda: 1))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([steps, int(seen.sum()), peak * 1024, process_time() - begun]))
"""


@pytest.mark.long
@pytest.mark.processes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="asks the system for the memory used")
def test_a_hundred_million_images_are_walked_in_bounded_memory() -> None:
    command = [sys.executable, "-c", WALK]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    steps, images, peak, seconds = json.loads(done.stdout)
    assert (steps, images) == (24_414, 24_414 * 4096)
    assert peak < 12 * 10**8
    assert seconds < 60
