"""scikit-learn's handwritten digits, which need no download."""

from pathlib import Path

import numpy as np
import torch

from simclr_pl.core.data.sources import ArrayImages
from simclr_pl.images.readers.reader import Raw
from simclr_pl.images.splits import holdout


def read_digits(root: Path) -> Raw:
    """scikit-learn's 1,797 handwritten digits (UCI optdigits' test part), a fifth of them test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target).long()
    # The holdout rule twice over, with a seed of its own, makes a class-balanced fifth.
    first = holdout(labels, seed=1797)
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[first] = False
    second = rest.nonzero()[:, 0][holdout(labels[rest], seed=1798)]
    rest[second] = False
    everything = ArrayImages(images, labels)
    test = everything.select(torch.cat([first, second]).sort().values)
    train = everything.select(rest.nonzero()[:, 0])
    return Raw(train, test=test, classes=tuple("0123456789"))
