"""The command line: quick answers, what a run leaves behind, ranks, workers, an interrupt."""

import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commands import QUICK, REPOSITORY, called, environment, finish, fit, run, signal_when, start
from noise import write_image
from run_files import RUN_FILES, checkpoint, files, rows, same_weights

from simclr_pl import __version__
from simclr_pl.__main__ import COMMANDS

COLUMNS = {
    *("step", "epoch", "train/loss", "train/contrastive_top1", "train/lr", "train/grad_norm"),
    *("val/loss", "probe/train_top1", "probe/val_top1", "probe/val_top5", "health/rankme"),
}
"""At the end of each epoch."""

AT_TIMES = {
    *("health/loss_over_chance", "health/positive_similarity", "health/negative_similarity"),
    "health/chance_loss",
    *("health/alignment", "health/uniformity", "health/feature_std", "health/projection_std"),
    *("knn/val_top1", "knn200/val_top1"),
}
"""At the first step, and at the end of the run."""


# Quick answers ------------------------------------------------------------------------------------


def without_torch(tmp_path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs a command where importing anything heavy fails."""
    heavy = ("torch", "lightning", "numpy", "timm", "wandb", "jsonargparse", "sklearn")
    lines = ["import sys", *(f"sys.modules[{name!r}] = None" for name in heavy)]
    (tmp_path / "sitecustomize.py").write_text("\n".join(lines))
    return called(
        sys.executable,
        "-m",
        "simclr_pl",
        *args,
        env=environment(PYTHONPATH=f"{tmp_path}:{REPOSITORY}"),
        timeout=60,
    )


@pytest.mark.parametrize("args", [["--help"], ["-h"], []])
def test_help_lists_every_command_before_anything_heavy_is_imported(
    tmp_path: Path, args: list[str]
) -> None:
    answer = without_torch(tmp_path, *args)
    assert answer.returncode == 0, answer
    assert answer.stderr == ""
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", answer.stdout, re.MULTILINE), name


def test_help_groups_the_commands_each_under_one_heading() -> None:
    out = run("--help").out
    blocks = dict(re.findall(r"^(\w+):\n((?:  .*\n)+)", out, re.MULTILINE))
    assert list(blocks) == ["train", "score", "use", "look", "run"]
    listed = re.findall(r"^  (\w+) +\S", "".join(blocks.values()), re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    assert "  fit " in blocks["train"]
    assert "  linear " in blocks["score"]


def installed(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs what pip writes into `bin/simclr_pl` for pyproject's entry."""
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["simclr_pl"].split(":")
    code = f"import sys; sys.path.remove(''); from {module} import {function}; {function}()"
    return called(sys.executable, "-c", code, *args, **options)


def test_the_installed_command_is_the_same_as_python_m(tmp_path: Path) -> None:
    answer = installed("--help", cwd=tmp_path)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, run("--help").out, "")
    answer = installed("validat", cwd=tmp_path)
    assert answer.returncode == 2
    assert "did you mean 'validate'?" in answer.stderr


def test_the_installed_command_finds_classes_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import lightning as L\n\n\nclass Say(L.Callback):\n"
        "    def on_train_end(self, *args):\n        print('said by mine')\n"
    )
    args = ("fit", *QUICK, "--run_dir", "run", "--trainer.callbacks+=mine.Say")
    answer = installed(*args, cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "said by mine" in answer.stdout
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_version_is_said_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    answer = without_torch(tmp_path, "--version")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == f"simclr_pl {__version__}\n"


def test_an_unknown_command_names_the_nearest_before_anything_heavy_is_imported(
    tmp_path: Path,
) -> None:
    answer = without_torch(tmp_path, "validat", "--run_dir", "x")
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert answer.stderr == "error: unknown command 'validat': did you mean 'validate'?\n"


def test_a_command_like_no_other_is_answered_with_all_of_them() -> None:
    outcome = run("qqq")
    assert outcome.code == 2
    for name in COMMANDS:
        assert name in outcome.sentence


def test_the_check_for_heavy_imports_can_fail(tmp_path: Path) -> None:
    answer = without_torch(tmp_path, "fit", "--help")
    assert answer.returncode != 0
    assert "import of" in answer.stderr  # "import of torch halted; None in sys.modules"


def test_fit_help_lists_the_keys_of_data_model_trainer_and_run() -> None:
    outcome = run("fit", "--help")
    assert (outcome.code, outcome.err) == (0, "")
    for key in (
        *("data.batch_size", "data.image_size", "model.temperature", "model.learning_rate"),
        *("probe.learning_rate", "seed_everything", "knn.k", "linear.epochs", "pictures.every_n_"),
        *("checkpoint.every_n_steps", "run_dir", "resume", "init_from", "wandb", "health.every_n_"),
    ):
        assert f"--{key}" in outcome.out, key
    assert "--trainer.devices" in run("fit", "--help", "trainer").out
    assert "images a step, global" in " ".join(outcome.out.split())  # units, from the docstrings


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "bench"])
def test_help_is_at_most_150_lines_without_lightnings_own_options(command: str) -> None:
    lines = run(command, "--help").out.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 100
    assert not any(line.startswith("  --trainer.") for line in lines)
    assert f"{command} --help trainer" in lines[-1]
    assert lines[0] == f"usage: python -m simclr_pl {command} [options]"
    assert "Namespace" not in "".join(lines)


def test_help_of_a_group_lists_that_group_alone() -> None:
    names = re.findall(r"^  (--[\w.]+)", run("fit", "--help", "trainer").out, re.MULTILINE)
    assert {"--trainer.max_epochs", "--trainer.devices", "--trainer.profiler"} <= {*names}
    assert all(name.startswith("--trainer.") for name in names)
    assert "--model.temperature" in run("fit", "--help", "model").out
    assert "there are checkpoint, data, health" in run("fit", "--help", "trainr").sentence


def test_options_that_would_not_be_used_are_not_there() -> None:
    for command in ("validate", "test", "predict"):
        out = run(command, "--help").out
        assert "--ckpt_path" in out
        for option in ("--verbose", "--weights_only", "--return_predictions"):
            assert option not in out


def test_fit_offers_no_second_way_to_choose_an_optimizer() -> None:
    out = run("fit", "--help").out
    assert "--model.optimizer" in out
    assert not re.search(r"^ +--optimizer", out, re.MULTILINE)
    assert not re.search(r"^ +--lr_scheduler", out, re.MULTILINE)


# A run and what it leaves behind ------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs; read only."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    fit(directory)
    return directory


def test_fit_writes_config_metrics_and_checkpoint_and_nothing_else(finished: Path) -> None:
    assert set(files(finished)) == RUN_FILES


def test_the_saved_config_is_the_whole_recipe_without_this_machines_paths(finished: Path) -> None:
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert not {"run_dir", "resume", "config"} & config.keys()
    assert config["seed_everything"] == 0
    assert config["trainer"]["max_epochs"] == 2
    assert config["data"]["batch_size"] == 128
    assert config["model"]["encoder_args"]["channels"] == [8, 8, 16, 16]
    assert config["model"]["temperature"] == 0.5  # defaults are part of a recipe


def test_metrics_have_a_row_a_step_with_every_promised_column(finished: Path) -> None:
    table = rows(finished)
    assert [(row["step"], row["epoch"]) for row in table] == [
        ("0", "0"), ("1", "0"), ("2", "1"), ("3", "1"),
    ]  # fmt: skip
    assert set().union(*table) == COLUMNS | AT_TIMES
    for row in table:
        assert float(row["train/grad_norm"]) > 0
        # 128 pairs: chance is the log of 255 candidates.
        assert 3 < float(row["train/loss"]) < 8
        assert 0 <= float(row["train/contrastive_top1"]) <= 1
    for row in (table[1], table[3]):
        assert row.keys() >= COLUMNS
        assert float(row["probe/val_top1"]) <= float(row["probe/val_top5"]) <= 1


def test_the_same_command_gives_the_same_run(finished: Path, tmp_path: Path) -> None:
    fit(tmp_path / "again")
    assert rows(tmp_path / "again") == rows(finished)
    assert same_weights(checkpoint(tmp_path / "again"), checkpoint(finished))


def test_a_saved_config_repeats_the_run_to_the_bit(finished: Path, tmp_path: Path) -> None:
    again = run("fit", "--config", finished / "config.yaml", "--run_dir", tmp_path / "again")
    assert again.code == 0, again
    assert rows(tmp_path / "again") == rows(finished)
    assert same_weights(checkpoint(tmp_path / "again"), checkpoint(finished))
    assert files(tmp_path / "again")["config.yaml"] == files(finished)["config.yaml"]


def test_another_seed_is_another_run(finished: Path, tmp_path: Path) -> None:
    fit(tmp_path / "other", "--seed_everything", "1")
    assert rows(tmp_path / "other")[0]["train/loss"] != rows(finished)[0]["train/loss"]


def test_limit_train_batches_is_what_steps_and_schedule_are_made_of(finished: Path) -> None:
    rates = [float(row["train/lr"]) for row in rows(finished)]
    peak = 0.05 * 128 / 256
    assert rates == pytest.approx([peak * (1 + np.cos(np.pi * s / 4)) / 2 for s in range(4)])
    assert checkpoint(finished)["global_step"] == 4


def test_overfit_batches_trains_on_the_same_batches_each_epoch(tmp_path: Path) -> None:
    still = ("--model.learning_rate", "1e-12", "--model.weight_decay", "0")
    fit(tmp_path / "overfit", *still, "--trainer.overfit_batches", "2")
    fit(tmp_path / "ordinary", *still)
    losses = [[float(r["train/loss"]) for r in rows(tmp_path / n)] for n in ("overfit", "ordinary")]
    assert losses[0][:2] == pytest.approx(losses[0][2:], rel=1e-5)
    assert losses[1][:2] != pytest.approx(losses[1][2:], rel=1e-3)


def test_fast_dev_run_trains_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("fit", *QUICK, "--trainer.fast_dev_run", "true", "--run_dir", "run")
    assert (outcome.code, outcome.err) == (0, "")
    assert "none (fast_dev_run)" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_options_on_the_command_line_win_over_files_and_later_files_over_earlier(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.yaml").write_text("data: {batch_size: 200, flip: 0.25}\nmodel: {momentum: 0.5}")
    (tmp_path / "b.yaml").write_text("data: {batch_size: 100}\nmodel: {temperature: 0.3}")
    config = tmp_path / "run" / "config.yaml"
    overlays = ("--config", tmp_path / "a.yaml", "--config", tmp_path / "b.yaml")
    fit(tmp_path / "run", *overlays, "--model.temperature", "0.2")
    saved = yaml.safe_load(config.read_text())
    assert saved["data"]["batch_size"] == 100
    assert saved["data"]["flip"] == 0.25
    assert saved["model"]["momentum"] == 0.5
    assert saved["model"]["temperature"] == 0.2


# Images of one's own ------------------------------------------------------------------------------


def draw(path: Path, seed: int) -> None:
    """A small JPEG, no two of the same size."""
    write_image(path, seed, 12 + seed % 5, 16)


FOLDER = (
    *("--data.dataset", "folder", "--data.batch_size", "8", "--data.num_workers", "2"),
    *("--trainer.max_epochs", "1", "--data.jitter", "0.5"),
)
fork_in_threads = pytest.mark.filterwarnings(  # Python 3.12 and later say so of worker processes
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


@fork_in_threads
@pytest.mark.processes
def test_a_folder_of_class_folders_trains_with_two_workers(tmp_path: Path) -> None:
    for seed in range(32):
        draw(tmp_path / "images" / ("cats" if seed % 2 else "dogs") / f"{seed}.jpg", seed)
    outcome = fit(tmp_path / "run", *FOLDER, "--data.root", tmp_path / "images")
    assert "32 images (28 labelled for the probe), 4 for validation, 2 classes" in outcome.out
    assert rows(tmp_path / "run")[-1].keys() >= COLUMNS - {"probe/val_top5"}


@fork_in_threads
@pytest.mark.processes
def test_a_folder_without_labels_trains_with_two_workers(tmp_path: Path) -> None:
    for seed in range(32):
        draw(tmp_path / "images" / f"{seed}.jpg", seed)
    outcome = fit(tmp_path / "run", *FOLDER, "--data.root", tmp_path / "images")
    assert "32 images (0 labelled for the probe)" in outcome.out
    last = rows(tmp_path / "run")[-1].keys()
    assert last >= {"train/loss", "train/contrastive_top1", "val/loss"}
    assert not any(name.startswith("probe/") for name in last)


# Processes ----------------------------------------------------------------------------------------


@pytest.mark.ddp
@pytest.mark.timeout(180)
def test_two_devices_write_one_run_and_learn_what_one_device_learns(tmp_path: Path) -> None:
    recipe = (*QUICK, "--trainer.limit_train_batches", "5")
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    process = start("fit", *recipe, *two, cwd=tmp_path)
    fit(tmp_path / "one", *recipe)
    outcome = finish(process)
    assert outcome.code == 0, outcome
    (run_directory,) = (tmp_path / "runs").glob("*/*")
    assert set(files(run_directory)) == RUN_FILES
    assert "global batch   128 images (64 a device), 254 negatives an anchor" in outcome.out
    assert outcome.out.count("run directory") == 1
    two_rows, one_rows = rows(run_directory), rows(tmp_path / "one")
    assert [row["step"] for row in two_rows] == [row["step"] for row in one_rows]
    assert float(two_rows[0]["train/loss"]) == pytest.approx(
        float(one_rows[0]["train/loss"]), rel=1e-4
    )
    assert float(two_rows[-1]["val/loss"]) == pytest.approx(
        float(one_rows[-1]["val/loss"]), rel=0.02
    )


def test_control_c_leaves_a_whole_checkpoint_and_says_how_to_continue(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    endless = ("--trainer.max_epochs", "100000", "--run_dir", directory)
    process = start("fit", *QUICK, *endless)
    begun = time.monotonic()
    last = directory / "checkpoints" / "last.ckpt"
    signal_when(process, lambda: last.exists() and len(rows(directory)) > 3, signal.SIGINT)
    outcome = finish(process)
    assert outcome.code not in (0, None), outcome
    assert "Traceback" not in outcome.err
    assert "--resume" in outcome.err
    assert str(directory) in outcome.err
    saved = checkpoint(directory)
    assert saved["global_step"] >= 2
    assert all(torch.isfinite(w).all() for w in saved["state_dict"].values())
    assert time.monotonic() - begun < 120
