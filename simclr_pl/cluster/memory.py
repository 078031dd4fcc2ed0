"""How much memory there is, how much was taken, and whether it was too little."""

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
            self.before = of_process("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.before
        elif _PEAK.exists():
            self.bytes = of_process("VmHWM") - self.before


_PEAK = Path("/proc/self/clear_refs")

PRIMITIVE = "could not create a primitive"
"""What oneDNN says on a CPU without memory, and seldom of something else."""


def of_process(name: str) -> int:
    """Bytes that the process takes, on Linux: `VmRSS` now, `VmHWM` at most, `VmSize` reserved."""
    return _bytes(Path("/proc/self/status"), name)


def _bytes(file: Path, name: str) -> int:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def collect(device: torch.device) -> None:
    """Gives back what nobody refers to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        give_back_memory()


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process may still take, where the system says so."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    system = Path("/proc/meminfo")
    if device.type != "cpu" or not system.exists():
        return None
    import resource  # of Unix alone

    free = [_bytes(system, "MemAvailable")]
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        free.append(max(0, most - of_process("VmSize")))
    left = left_to_container()
    return min(free if left is None else [*free, left])


def left_to_container(groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes up to the limit of a container's processes; `None` where there is no limit.

    Cached files count as free, but for those in active use: the kernel gives them up first.

    Args:
        groups: where Linux shows them, of version 2 or, below `memory`, 1.
    """
    for folder, limit, used, cached in (
        (groups, "memory.max", "memory.current", "inactive_file"),
        (
            groups / "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        try:
            most, taken = (
                (folder / name).read_text(encoding="utf-8").strip() for name in (limit, used)
            )
            rows = dict(
                row.split()
                for row in (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
            )
        except (OSError, ValueError):
            continue
        if most != "max" and int(most) < 2**60:  # version 1 has a huge number for none
            return max(0, int(most) - int(taken) + int(rows.get(cached, 0)))
    return None


def ran_out(error: BaseException) -> bool:
    """Whether memory, of whatever device, was what there was too little of."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = "out of memory", "can't allocate memory", "bad_alloc", PRIMITIVE
    return is_oom_error(error) or any(word in str(error) for word in words)
