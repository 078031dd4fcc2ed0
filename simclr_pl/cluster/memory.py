"""Peak memory, and whether an error means that memory ran out."""

import gc
from pathlib import Path

import torch
from lightning.pytorch.utilities.memory import is_oom_error

from simclr_pl.core.speed.allocator import give_back_memory


class PeakMemory:
    """A context in which memory is watched: the process's on a CPU (on Linux), else the device's.

    Attributes:
        bytes: the peak above the start; `None` where nobody can say.
        before: bytes in use at the start.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None
        self.before = 0

    def __enter__(self) -> "PeakMemory":
        collect(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        elif _PEAK.exists():
            _PEAK.write_text("5", encoding="utf-8")  # the peak begins anew
            self.before = _of_process("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.before
        elif _PEAK.exists():
            self.bytes = _of_process("VmHWM") - self.before


_PEAK = Path("/proc/self/clear_refs")


def _of_process(name: str) -> int:
    """Bytes that the process takes, on Linux: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def collect(device: torch.device) -> None:
    """Gives back what nobody refers to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        give_back_memory()


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # (The last is what oneDNN says on a CPU without memory, and seldom of something else.)
    words = "out of memory", "can't allocate memory", "bad_alloc", "could not create a primitive"
    return is_oom_error(error) or any(word in str(error) for word in words)
