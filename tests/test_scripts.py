"""The scripts, as a newcomer runs them."""

import re
import sys
from pathlib import Path

import pytest
from commands import REPOSITORY, called
from PIL import Image


@pytest.mark.timeout(900)
def test_quickstart_shows_what_pretraining_was_worth(tmp_path: Path) -> None:
    if not (REPOSITORY / ".venv" / "installed-dev").exists():
        pytest.skip("scripts/install.sh has not made .venv")
    run = tmp_path / "run"
    done = called("bash", "scripts/quickstart.sh", run, cwd=REPOSITORY, timeout=800)
    assert done.returncode == 0, done.stderr
    assert "left" in done.stdout  # progress with the time left, without a terminal
    table = done.stdout.split("top-1 on the test split of digits")[1]
    every = [float(n) for n in re.search(r"all \d+ labels +(.*)", table)[1].split()]  # type: ignore[index]
    few = [float(n) for n in re.findall(r"([\d.]+) ± [\d.]+", table)]
    assert len(every) == len(few) == 3
    pixels, untrained, pretrained = few
    assert pretrained > pixels > 0.5
    assert pretrained > untrained
    errors = float(re.search(r"([\d.]+) standard errors", table)[1])  # type: ignore[index]
    assert errors > 2
    assert f"run directory: {run} (its pictures on one page: {run}/report.html)" in done.stdout
    for name in ("views.png", "curves.png"):
        with Image.open(run / "pictures" / name) as picture:
            assert min(picture.size) > 300


SCRIPTS = [
    *sorted((REPOSITORY / "scripts").glob("*.sh")),
    *sorted((REPOSITORY / "scripts").glob("*.sbatch")),
    REPOSITORY / ".ci" / "run",
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    program = Path(sys.executable).with_name("shellcheck")
    command = [program, "--norc", "--severity=style", path]
    found = called(*command)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")
    assert path.stat().st_mode & 0o111
