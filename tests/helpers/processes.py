"""Which tests start processes, read off their code; and a guard that stops all others from it."""

import dis
import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest
from wandb_server import wandb_server

TESTS = Path(__file__).resolve().parents[1]

FORKS = {"fork", "forkpty", "posix_spawn", "system"}
"""Functions of `os`."""

CONTEXTS = {"Process", "Pool", "get_context"}
"""Functions of `multiprocessing`."""

EVENTS = {"subprocess.Popen", *(f"os.{name}" for name in FORKS)}
"""What the interpreter tells its audit hooks."""

QUICK = {"git", "uname"}
"""Programs that take milliseconds, which the product and the standard library ask."""


def starts_processes(item: pytest.Item) -> bool:
    """Whether a test, one of its fixtures, or a function of the tests that they name, does.

    Also a test that is given a number of `workers`, or a W&B server, which W&B's process talks to.
    """
    callspec = getattr(item, "callspec", None)
    if callspec and callspec.params.get("workers"):
        return True
    seen: set[CodeType] = set()
    fixtures = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
    functions = [item.function, *(known.func for several in fixtures for known in several)]  # type: ignore[attr-defined]
    return any(_starts(function, seen) for function in functions)


def _starts(function: Any, seen: set[CodeType]) -> bool:
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType) or function.__code__ in seen:
        return False
    seen.add(function.__code__)
    loads = list(_loads(function.__code__))
    names = {name for _, name in loads}
    used = {name for how, name in loads if how == "LOAD_GLOBAL"} & function.__globals__.keys()
    values = [function.__globals__[name] for name in used]
    return any(
        _is_starter(value, names) or any(_starts(one, seen) for one in _of_tests(value, names))
        for value in values
    )


def _loads(code: CodeType) -> Iterator[tuple[str, str]]:
    """How each name is looked up in a function, and in those inside it."""
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_ATTR", "LOAD_METHOD"):
            yield step.opname, step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _loads(constant)


def _is_starter(value: Any, names: set[str]) -> bool:
    if isinstance(value, ModuleType):
        asked = {"os": FORKS, "multiprocessing": CONTEXTS}.get(value.__name__, set())
        return value is subprocess or bool(asked & names)
    return isinstance(value, BaseContext) or value is wandb_server


def _of_tests(value: Any, names: set[str]) -> list[Any]:
    """Functions and methods of the tests' own among what a name stands for."""
    if isinstance(value, ModuleType):  # of helpers: `stopping.begin`
        ours = str(TESTS) in (getattr(value, "__file__", "") or "")
        return [getattr(value, name, None) for name in names] if ours else []
    if isinstance(value, type):
        return list(vars(value).values()) if _is_ours(value.__module__) else []
    value = getattr(value, "__wrapped__", value)  # of a context manager
    return [value] if isinstance(value, FunctionType) and _is_ours(value.__module__) else []


def _is_ours(module: str) -> bool:
    path = getattr(sys.modules.get(module), "__file__", "") or ""
    return Path(path).is_relative_to(TESTS)


class Guard:
    """Lets no test start a process that isn't marked for it."""

    def __init__(self) -> None:
        self.forbidden = False
        self.started: list[str] = []
        sys.addaudithook(self._see)
        start = BaseProcess.start  # workers and ranks: their server is asked, where no event tells

        def guarded(process: BaseProcess) -> None:
            self._refuse(f"{type(process).__name__} {process.name}")
            start(process)

        BaseProcess.start = guarded  # type: ignore[method-assign]

    def _see(self, event: str, args: tuple[Any, ...]) -> None:
        if self.forbidden and event in EVENTS:
            words = args[1] if event == "subprocess.Popen" else [event]
            words = [words] if isinstance(words, str | bytes) else list(words)
            program = Path(os.fsdecode(words[0])).name
            if program not in QUICK:
                self._refuse(" ".join(os.fsdecode(word) for word in words)[:80])

    def _refuse(self, what: str) -> None:
        if self.forbidden:
            self.started.append(what)
            raise self.failure()

    def failure(self) -> BaseException:
        """The sentence; raised, and again at the end for a test that has swallowed it."""
        what = self.started[0]
        return pytest.fail.Exception(
            f"this test starts a process ({what}): mark it with @pytest.mark.processes",
            pytrace=False,
        )
