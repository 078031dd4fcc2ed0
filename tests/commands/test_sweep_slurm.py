"""scripts/sweep.sh --slurm on a real Slurm of two nodes: an array, a run each, two ranks a run."""

import shutil
from pathlib import Path

import pytest
import slurm
import yaml
from commands import REPOSITORY
from run_files import checkpoint
from sweeps import swept, write
from wandb_server import wandb_server

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.ddp,
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing()),
]


def test_every_rank_of_every_job_has_the_server_s_values(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = write(tmp_path / "mine.yaml", "--trainer.num_nodes", "2", "--trainer.devices", "1")
    values = [{"model.temperature": 0.25, "data.batch_size": n} for n in (64, 96)]
    with wandb_server() as server, slurm.slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        server.values = list(values)
        here = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40}
        here |= {"WANDB_DIR": str(tmp_path)}
        here |= {k: cluster.environment[k] for k in ("SLURM_CONF", "MASTER_ADDR")}
        options = ("--nodes=2", f"--output={tmp_path}/%a.log", "--parsable")
        done = swept("--config", config, "--slurm", "2", "--", *options, **here)
        assert done.returncode == 0, done
        job = done.stdout.split()[-1]
        jobs = [f"{job}_{number}" for number in (1, 2)]
        for name in jobs:
            cluster.wait(lambda name=name: cluster.job(name)["JobState"] == "COMPLETED", 150)
    found = set()
    folder = REPOSITORY / "runs" / f"sweep-{job}"  # the script chose it, under the folder it is in
    for number in (1, 2):
        run = folder / str(number)
        recipe = yaml.safe_load((run / "config.yaml").read_text())
        assert recipe["model"]["temperature"] == 0.25
        batch = recipe["data"]["batch_size"]
        assert f"{batch} images ({batch // 2} a device)" in (tmp_path / f"{number}.log").read_text()
        assert checkpoint(run)["global_step"] == 4
        found.add(batch)
    assert found == {64, 96}
    shutil.rmtree(folder)
