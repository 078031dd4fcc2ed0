"""torch.compile, where a flag asks for it and there is something to compile with."""

import functools
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from simclr_pl.core.errors import UserError


def check_compiler(key: str) -> None:
    """Looks for the C++ compiler without which torch.compile makes nothing.

    Args:
        key: the flag that asks for it.

    Raises:
        UserError: there is none.
    """
    if not has_compiler():
        raise UserError(
            f"{key} needs a C++ compiler, and none was found: install one (g++), or give "
            f"--{key} false"
        )


def has_compiler() -> bool:
    """Whether there is a C++ compiler, under its usual names or that of the variable `CXX`."""
    names = (os.environ.get("CXX", "c++"), "g++", "clang++")
    return any(shutil.which(name) for name in names)


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is compiled when it is first called, which takes some seconds.

    Once more where another size comes, then for any size; numbers among its arguments, and what
    loops over a tensor's rows, are compiled one by one (eight of them, then not at all).
    """
    return torch.compile(function)
