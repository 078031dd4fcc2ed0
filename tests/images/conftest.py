"""Machines without Debian's files."""

from pathlib import Path

import pytest

from simclr_pl.images.readers import fashion_mnist


@pytest.fixture
def no_debian(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion_mnist, "FASHION_DEBIAN", tmp_path / "no-such-package")
