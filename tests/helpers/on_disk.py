"""A callback with which a run in a process of its own keeps no images in memory."""

import lightning as L

from simclr_pl.images.readers import items, stored


class OnDisk(L.Callback):
    """Sets how many bytes of images fit into memory: none."""

    def __init__(self) -> None:
        stored.MEMORY_BYTES = items.MEMORY_BYTES = 0
