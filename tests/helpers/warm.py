"""Processes of the command line that are forked off one that has paid for the imports.

Python, torch and Lightning take five seconds to come up, and hundreds of tests start a process for
what it does in its first two. What is forked is a process like any other: a child of the tests',
with its own arguments, environment, folder, streams and session, which runs `simclr_pl` as `-m`
does, ends by itself, and has an exit code or a signal that ended it.
"""

import atexit
import ctypes
import functools
import inspect
import os
import pickle
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

PR_SET_CHILD_SUBREAPER = 36
SIZE = 1 << 20


# Here ---------------------------------------------------------------------------------------------


class Warm(subprocess.Popen[str]):
    """As `Popen([sys.executable, "-m", "simclr_pl", ...], ...)`, without the imports."""

    def _execute_child(self, *given: Any) -> None:
        bound = inspect.signature(subprocess.Popen._execute_child).bind(self, *given)  # type: ignore[attr-defined]
        asked = bound.arguments
        args = [os.fsdecode(arg) for arg in asked["args"]]
        sys.audit("subprocess.Popen", args[0], args, asked["cwd"], asked["env"])
        streams = [asked[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        streams = [own if fd == -1 else fd for own, fd in enumerate(streams)]
        session = asked["start_new_session"]
        order = (args[3:], dict(asked["env"]), str(asked["cwd"] or Path.cwd()), session)
        server = _server()
        adopt = ctypes.CDLL(None).prctl
        adopt(PR_SET_CHILD_SUBREAPER, 1)  # orphans become children of this process: the one below
        try:
            socket.send_fds(server, [pickle.dumps(order)], streams)
            self.pid = int(server.recv(SIZE))
            assert server.recv(SIZE) == b"orphan"
        finally:
            adopt(PR_SET_CHILD_SUBREAPER, 0)
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(asked[name] for name in pipes))  # type: ignore[attr-defined]


@functools.cache
def _server() -> socket.socket:
    """The other end of a server that lives as long as this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours


# There --------------------------------------------------------------------------------------------


def serve(connection: socket.socket) -> None:
    """Forks a process whenever one is asked for; returns in each of them, and at the end."""
    while True:
        order, streams, _, _ = socket.recv_fds(connection, SIZE, 3)
        if not order:
            os._exit(0)
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child == 0:
                while os.getppid() == between:
                    time.sleep(0.001)
                become(*pickle.loads(order), streams)
                return
            connection.send(str(child).encode())
            os._exit(0)
        os.waitpid(between, 0)  # its child has another parent now: who asked
        connection.send(b"orphan")
        for fd in streams:
            os.close(fd)


def become(
    args: list[str], environment: dict[str, str], cwd: str, session: bool, streams: list[int]
) -> None:
    """Makes this process what a fresh interpreter would be."""
    for own, fd in enumerate(streams):
        os.dup2(fd, own)
    os.closerange(3, max([*streams, int(sys.argv[1])]) + 1)
    if session:
        os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = [cwd, *paths]
    sys.argv = ["-m", *args]
    rank_zero_only.rank = _get_rank() or 0  # taken from the environment at the import


if __name__ == "__main__":
    import sklearn.datasets  # noqa: F401
    import timm  # noqa: F401

    import simclr_pl.commands.fit  # noqa: F401

    # W&B makes a folder for pictures when it is imported, which the first process would take away.
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        del sys.modules[name]
    serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("simclr_pl", run_name="__main__", alter_sys=True)
