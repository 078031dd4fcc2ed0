"""Standard output and error that may be lost: a command goes on without anybody to read it."""

import io
import os
import sys
from typing import Any


def keep_going() -> None:
    """From now on no line of output ends this process: the terminal, pipe or log may be gone.

    Streams that somebody else has put in place, as tests and notebooks do, are left as they are.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed by whoever has started this: the next file opened would be it
            os.open(os.devnull, os.O_RDWR)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__") and os.name != "nt":
            setattr(sys, name, _lasting(stream, number))


def _lasting(stream: io.TextIOWrapper, number: int) -> io.TextIOWrapper:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Lasting(number, "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Lasting(io.FileIO):
    """A file that takes what cannot be written as written."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(memoryview(data))
