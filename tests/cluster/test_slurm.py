"""The shipped job on a real Slurm."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import QUICK, REPOSITORY
from commands import run as command
from distances import far
from run_files import checkpoint, rows
from slurm import Slurm, missing, slurm

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.ddp,
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


STEPS, EPOCHS = 12, 20

RECIPE = (
    *QUICK,
    *("--data.batch_size", "96", "--trainer.limit_train_batches", STEPS),
    *("--trainer.max_epochs", EPOCHS, "--trainer.precision", "64-true"),
)


def test_preempted_job_continues(cluster: Slurm, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "job.out"
    options = (
        *("--partition", "low", "--nodes", 2, "--gpus-per-node", 0, "--cpus-per-task", 1),
        *("--signal", "SIGUSR1@60", "--time", 10, "--output", out),
    )
    job = cluster.submit(*options, "scripts/slurm.sbatch", "configs/digits.yaml", run, *RECIPE)
    cluster.wait(lambda: len(rows(run)) > 20, 120)
    urgent = cluster.submit(
        "--partition",
        "high",
        "--nodes",
        2,
        "--output",
        tmp_path / "urgent.out",
        "--wrap",
        "sleep 3",
    )
    cluster.wait(lambda: cluster.job(urgent)["JobState"] == "COMPLETED", 90)
    stopped = checkpoint(run)["global_step"]
    assert 20 < stopped < STEPS * EPOCHS
    cluster.wait(lambda: cluster.job(job)["JobState"] == "COMPLETED", 120)
    said = out.read_text()
    assert f"unfinished: stopped by SIGUSR1 at step {stopped}" in said
    assert f"Slurm is asked to queue job {job} again" in said
    assert cluster.job(job)["Restarts"] == "1"
    assert checkpoint(run)["callbacks"]["Restarts"] == {"job": job, "restart": 1}
    whole = tmp_path / "whole"
    config = REPOSITORY / "configs" / "digits.yaml"
    assert command("fit", "--config", config, *RECIPE, "--run_dir", whole).code == 0
    one, other = checkpoint(run), checkpoint(whole)
    assert one["global_step"] == other["global_step"] == STEPS * EPOCHS
    for part in ("state_dict", "optimizer_states"):
        assert far(one[part], other[part]) < 1e-9


def test_tasks_see_all_gpus_of_their_node(cluster: Slurm, tmp_path: Path) -> None:
    """Lightning is told how many devices a node has: each task has to find its own among all."""
    run, out = tmp_path / "run", tmp_path / "job.out"
    options = (
        *("--partition", "gpu", "--ntasks-per-node", 2, "--gpus-per-node", 2),
        *("--cpus-per-task", 2, "--time", 10, "--output", out),
        *("--export", f"ALL,PYTHONPATH={REPOSITORY}:{REPOSITORY / 'tests' / 'helpers'}"),
    )
    look = "--trainer.callbacks+=recording.Seen"
    script = ("scripts/slurm.sbatch", "configs/digits.yaml", run)
    job = cluster.submit(*options, *script, *QUICK, look)
    cluster.wait(lambda: cluster.job(job)["JobState"] in ("COMPLETED", "FAILED"), 120)
    assert cluster.job(job)["JobState"] == "COMPLETED", out.read_text()
    seen = [json.loads((run / f"seen-{rank}").read_text()) for rank in (0, 1)]
    assert [task["CUDA_VISIBLE_DEVICES"] for task in seen] == ["0,1", "0,1"]
    assert [task["SLURM_LOCALID"] for task in seen] == ["0", "1"]
    assert " CPUs=4 " in seen[0]["step"]  # two a task: no srun reads sbatch's option by itself


def test_a_gpu_too_few_is_said_before_anything_is_started(cluster: Slurm, tmp_path: Path) -> None:
    out = tmp_path / "job.out"
    options = ("--partition", "gpu", "--ntasks-per-node", 2, "--cpus-per-task", 1)
    options = (*options, "--time", 10, "--output", out)
    job = cluster.submit(*options, "scripts/slurm.sbatch", "configs/digits.yaml", tmp_path / "run")
    cluster.wait(lambda: cluster.job(job)["JobState"] == "FAILED", 60)
    assert out.read_text() == (
        "error: tasks a node: 2, GPUs: 1; one task a GPU: give --gpus-per-node 2\n"
    )
