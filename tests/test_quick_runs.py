"""The guard of quick runs: no test in them starts a process, or computes for long."""

import re
import sys
from pathlib import Path

import pytest
from commands import REPOSITORY, called

# The look at a test's code sees global names: what a test imports itself is the guard's to catch.
TESTS = """
import subprocess
import time

import pytest


def test_hidden():
    import subprocess
    subprocess.run(["sleep", "0"])


def test_swallowed():
    import multiprocessing.process
    try:
        multiprocessing.process.BaseProcess().start()
    except BaseException:
        pass


def test_git():
    import subprocess
    subprocess.run(["git", "--version"])


def test_slow_by_itself():
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass


@pytest.mark.processes
def test_marked():
    import subprocess
    subprocess.run(["sleep", "0"])


def test_seen():
    subprocess.run(["sleep", "0"])
"""


def outcomes(folder: Path, expression: str) -> tuple[dict[str, str], str]:
    """How each of the tests above ends under the real conftest, and all that pytest says."""
    text = (REPOSITORY / "tests" / "conftest.py").read_text()
    assert "LONG = 10.0\n" in text
    (folder / "conftest.py").write_text(text.replace("LONG = 10.0\n", "LONG = 0.2\n"))
    (folder / "test_it.py").write_text(TESTS)
    config = REPOSITORY / "pyproject.toml"
    pytest_ = (sys.executable, "-m", "pytest", "-vp", "no:cacheprovider")
    done = called(*pytest_, "-c", config, "-m", expression, folder, cwd=folder)
    return dict(re.findall(r"::test_(\w+) (\w+) +\[", done.stdout)), done.stdout


@pytest.mark.processes
def test_a_quick_run_fails_what_starts_a_process_and_leaves_out_what_is_marked(
    tmp_path: Path,
) -> None:
    script = (REPOSITORY / "scripts" / "test.sh").read_text()
    (quick,) = re.findall(r'-m "(not .*?)"', script)
    ended, said = outcomes(tmp_path, quick)
    failed = dict.fromkeys(("hidden", "swallowed", "slow_by_itself"), "FAILED")
    assert ended == {**failed, "git": "PASSED"}, said
    for sentence in (
        r"this test starts a process \(sleep 0\): mark it with @pytest.mark.processes",
        r"this test starts a process \(BaseProcess .*\): mark it with @pytest.mark.processes",
        r"it computes for 0 s: mark it with @pytest.mark.long",
    ):
        assert re.search(rf"^{sentence}$", said, re.MULTILINE), said
    assert "2 deselected" in said


@pytest.mark.processes
def test_in_a_whole_run_every_test_may_start_processes(tmp_path: Path) -> None:
    ended, said = outcomes(tmp_path, "not slow")
    assert {name for name, end in ended.items() if end == "PASSED"} >= {"hidden", "marked", "seen"}
    assert "starts a process" not in said
