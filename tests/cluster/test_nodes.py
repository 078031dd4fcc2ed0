"""Two machines without Slurm: network namespaces that see each other through one wire."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import QUICK, REPOSITORY, environment, finish
from commands import run as command
from distances import far
from run_files import checkpoint, rows

pytestmark = [
    pytest.mark.ddp,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2"
    ),
]

RECIPE = (
    *QUICK,
    *("--data.batch_size", "97", "--trainer.limit_train_batches", 6),
    *("--trainer.precision", "64-true"),
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Names of two namespaces, 10.77.0.1 and 10.77.0.2, each with one interface called wire."""
    names = [f"simclr{number}-{os.getpid()}" for number in (0, 1)]
    try:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        ends = [("wire", "netns", name) for name in names]
        ip("link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "wire")
            for interface in ("wire", "lo"):
                ip("-n", name, "link", "set", interface, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, timeout=30)


def node(name: str, number: int, run: Path) -> subprocess.Popen[str]:
    """One machine's part of a run."""
    about = {"NODES": "2", "NODE_RANK": str(number), "MASTER_ADDR": "10.77.0.1", "DEVICES": "1"}
    return subprocess.Popen(
        ["ip", "netns", "exec", name, "bash", "scripts/torchrun.sh", "configs/digits.yaml"]
        + [str(word) for word in (run, *RECIPE)],
        cwd=REPOSITORY,
        env=environment(GLOO_SOCKET_IFNAME="wire", PYTHON=sys.executable, **about),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_machines_give_the_run_of_one(nodes: list[str], tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    started = [node(name, number, run) for number, name in enumerate(nodes)]
    done = [finish(process) for process in started]
    assert [outcome.code for outcome in done] == [0, 0], done
    assert "device         2 x cpu" in done[0].out
    assert done[1].out == ""
    config = REPOSITORY / "configs" / "digits.yaml"
    assert command("fit", "--config", config, *RECIPE, "--run_dir", whole).code == 0
    one, other = checkpoint(run), checkpoint(whole)
    assert one["global_step"] == other["global_step"] == 12
    for part in ("state_dict", "optimizer_states"):
        assert far(one[part], other[part]) < 1e-9
    assert [row.keys() for row in rows(run)] == [row.keys() for row in rows(whole)]
