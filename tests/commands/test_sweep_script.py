"""scripts/sweep.sh, as far as it goes without W&B: its own client and agent, at a small server."""

from pathlib import Path

import pytest
import yaml
from run_files import checkpoint
from sweeps import swept, write
from wandb_server import wandb_server

from simclr_pl.commands.sweep.space import read_search
from simclr_pl.run.directory import RunDirectory


def test_the_server_s_values_reach_fit_as_options(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    config = write(tmp_path / "mine.yaml", "--run_dir", str(run.path), "--wandb", "offline")
    values = {"model.temperature": 0.25, "model.learning_rate": 0.02, "data.batch_size": 64}
    with wandb_server() as server:
        server.values = [values]
        here = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40}
        here["WANDB_SILENT"] = (
            "true"  # as some people have it: the sweep's name is found all the same
        )
        done = swept("--config", config, "--count", "1", **here, WANDB_DIR=str(tmp_path))
    assert done.returncode == 0, done
    assert "sweep me/simclr_pl/s7; more runs of it: bash scripts/sweep.sh --sweep" in done.stdout
    # What W&B's client sent is what was written, and its agent formed the words that we form.
    sent, shipped = yaml.safe_load(server.sweep), yaml.safe_load(config.read_text())
    assert {key: sent[key] for key in shipped} == shipped
    words = read_search(config).words(values)
    assert " ".join(f'"{w}"' if " " in w else w for w in words[2:]) in done.stderr
    found = yaml.safe_load(run.config.read_text())
    for name, value in values.items():
        group, key = name.split(".")
        assert found[group][key] == value
    assert checkpoint(run.path)["global_step"] == 4
    # The server knows the run by the id that it gave the agent.
    assert run.wandb_id.read_text() == "run0\n"
    assert len(list(run.path.glob("wandb/offline-run-*-run0"))) == 1


def test_local_is_the_command(tmp_path: Path) -> None:
    done = swept("--resume", "--local", "0", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == "error: local is 0, but must be at least 1 run\n"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ((), "nobody is logged in to W&B: wandb login, or sweep without it (--local 8)"),
        (("--count", "none"), "none is no number of runs (--help)"),
        (("--count",), "--count needs a value (--help)"),
        (("--fast", "1"), "unknown option --fast (--help)"),
        (("--config", "no.yaml"), "there is no sweep at no.yaml: give a YAML file as --config"),
    ],
)
def test_what_is_wrong_is_a_sentence(args: tuple[str, ...], sentence: str) -> None:
    done = swept(*args)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {sentence}\n")


def test_a_server_that_does_not_answer_ends_in_a_sentence() -> None:
    done = swept(WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="0" * 40)
    assert done.returncode == 2
    assert done.stderr.startswith("error: W&B takes no sweep: ")
    assert done.stderr.count("\n") == 1


def test_help_says_how(tmp_path: Path) -> None:
    done = swept("--help")
    assert done.returncode == 0
    for option in ("--local", "--count", "--slurm", "--sweep", "--config"):
        assert option in done.stdout
