"""A small CIFAR-10 behind a real server, for processes that download it."""

import hashlib
import io
import multiprocessing
import pickle
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import ranks  # noqa: F401 - its forkserver has imported torchvision already

FOLDER = "cifar-10-batches-py"


class Served(NamedTuple):
    """An archive on a server, and what torchvision has to know about it."""

    tables: dict[str, Any]
    downloads: list[float]
    """When each download began."""

    go_on: threading.Event
    """Until it is set, downloads stop at their half."""


def archive() -> tuple[bytes, dict[str, Any]]:
    """CIFAR-10's archive with 20 images a batch, and torchvision's table of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    labels = [*range(10)] * 2
    batches = {f"data_batch_{i}": {"data": pixels, "labels": labels} for i in range(1, 6)}
    batches["test_batch"] = {"data": pixels, "labels": labels}
    meta = {"batches.meta": {"label_names": [f"class{i}" for i in range(10)]}}
    files = {name: pickle.dumps(value) for name, value in {**batches, **meta}.items()}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    content = packed.getvalue()
    return content, {
        "tgz_md5": hashlib.md5(content).hexdigest(),
        "train_list": [[name, sums[name]] for name in files if name.startswith("data")],
        "test_list": [["test_batch", sums["test_batch"]]],
        "meta": {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]},
    }


@contextmanager
def served() -> Iterator[Served]:
    """Serves the archive on this machine."""
    content, tables = archive()
    found = Served(tables, [], threading.Event())

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.headers["Method"] == "HEAD":  # torchvision's way to ask for redirections
                return
            found.downloads.append(time.monotonic())
            half = len(content) // 2
            self.wfile.write(content[:half])
            self.wfile.flush()
            found.go_on.wait(60)
            self.wfile.write(content[half:])

        def log_message(self, *args: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # by one that was killed
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    found.tables["url"] = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        found.go_on.set()
        server.shutdown()
        server.server_close()


def point_to(tables: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torchvision find the served archive, in this process."""
    from torchvision.datasets import CIFAR10

    for name, value in tables.items():
        monkeypatch.setattr(CIFAR10, name, value)


def preparing(
    tables: dict[str, Any], root: Path, said: Path, notice: float = 10.0
) -> ForkServerProcess:
    """Starts a process that prepares CIFAR-10, reads it, and writes what it says to a file."""
    process = multiprocessing.get_context("forkserver").Process(
        target=_prepare, args=(tables, root, said, notice), daemon=True
    )
    process.start()
    return process


def _prepare(tables: dict[str, Any], root: Path, said: Path, notice: float) -> None:
    from simclr_pl import locks
    from simclr_pl.images.datasets import load, prepare

    with said.open("w") as sys.stdout, pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "NOTICE_AFTER_S", notice)
        point_to(tables, patch)
        prepare("cifar10", root)
        assert len(load("cifar10", root).train) == 100
