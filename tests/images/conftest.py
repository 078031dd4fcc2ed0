"""Machines without Debian's files, and without internet."""

import socket
from pathlib import Path
from typing import Any

import pytest

from simclr_pl.images.readers import fashion_mnist, reader


@pytest.fixture(autouse=True)
def _nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line about data is said once a process, whatever tests have run before."""
    monkeypatch.setattr(reader, "_said", set())


@pytest.fixture
def no_debian(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion_mnist, "FASHION_DEBIAN", tmp_path / "no-such-package")


@pytest.fixture
def no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name resolves, whether or not this machine has internet."""

    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
