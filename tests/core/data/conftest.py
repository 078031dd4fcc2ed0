"""A folder of images."""

from pathlib import Path

import pytest
from noise import write_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        for i in range(10):
            write_image(tmp_path / name / f"{i}.png", i, 20 + i, 30)
    return tmp_path
