"""What a run tells Weights & Biases, read back from its offline parts: words, config, artifacts."""

import hashlib
import json
import math
import os
import signal
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pausing
import pytest
import wandb
import yaml
from commands import QUICK, REPOSITORY, called, environment, finish, fit, run, signal_when, start
from offline import artifacts, begun, history, recipe, records, summary
from run_files import rows
from secretive import SecretiveLogger
from wandb_server import wandb_server

from simclr_pl import UserError
from simclr_pl.tracking.artifacts import delete_old
from simclr_pl.tracking.provenance import git_commit
from simclr_pl.tracking.wandb import FLUSH_S, WandbChoice

WORDS = (
    *("--wandb", "offline", "--wandb.project", "letters", "--wandb.group", "first"),
    *("--wandb.tags", "small, quick", "--wandb.notes", "a note", "--wandb.log_model", "true"),
    *("--wandb.keep", "2"),
)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def aliases(found: list[dict[str, Any]]) -> list[set[str]]:
    """Of each artifact that a part of a run has logged."""
    return [set(artifact["aliases"]) for artifact in artifacts(found)]


def test_a_logger_s_key_reaches_the_logger_and_nothing_else(tmp_path: Path) -> None:
    service = {"settings": {"api_token": "PSSST"}, "uri": "https://me:PSSST@example.org/x", "n": 3}
    asked = {
        "class_path": "secretive.SecretiveLogger",
        "init_args": {"save_dir": str(tmp_path / "csv"), "api_key": "PSSST"},
        "dict_kwargs": service,
    }
    config, directory = tmp_path / "recipe.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump({"trainer": {"logger": [asked]}}))
    try:
        for more in ((), ("--resume", "--trainer.max_epochs", "3")):
            done = fit(directory, "--config", config, "--wandb", "offline", *more)
            assert (
                "left out of config.yaml, as a secret: trainer.logger[0].init_args.api_key, "
                "trainer.logger[0].dict_kwargs.settings.api_token, "
                "the password in trainer.logger[0].dict_kwargs.uri; "
            ) in done.out
    finally:
        wandb.teardown()
    assert SecretiveLogger.given == [("PSSST", service)] * 2
    parts = records(directory)
    assert len(parts) == 2
    assert recipe(parts[0])["trainer"]["logger"][0]["dict_kwargs"]["n"] == 3
    hiding = [path for path in directory.rglob("*") if path.is_file()]
    assert [path for path in hiding if b"PSSST" in path.read_bytes()] == []
    kept = yaml.safe_load((directory / "config.yaml").read_text())["trainer"]["logger"][0]
    assert kept["dict_kwargs"] == {"settings": {}, "uri": "https://example.org/x", "n": 3}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs, whose second session was told other words; and evaluations of it."""
    directory = tmp_path_factory.mktemp("told") / "run"
    try:
        fit(directory, *WORDS, "--trainer.max_epochs", 3)
        other = ("--wandb.notes", "another", "--wandb.keep", 1, "--resume")
        fit(directory, *WORDS, *other, "--trainer.max_epochs", 4)
        grid = ("--epochs", 1, "--learning_rates", 1.0, "--weight_decays", 0)
        for command in (("linear", *grid), ("knn",)):
            outcome = run(*command, "--run_dir", directory, "--split", "val")
            assert (outcome.code, outcome.err) == (0, ""), outcome
        short = ("--label_fraction", 0.2, "--epochs", 2, "--trainer.accelerator", "cpu")
        outcome = run("finetune", *short, *WORDS, "--split", "val", "--run_dir", directory)
        assert (outcome.code, outcome.err) == (0, ""), outcome
    finally:
        wandb.teardown()
    return directory


def of_job(directory: Path, job: str) -> list[list[dict[str, Any]]]:
    return [part for part in records(directory) if begun(part).get("job_type") == job]


def test_a_run_has_the_words_that_the_config_gives_it(told: Path) -> None:
    first, second = (begun(part) for part in of_job(told, "pretrain"))
    name = (told / "wandb_id.txt").read_text().strip()
    for part in (first, second):
        assert (part["run_id"], part["project"], part["run_group"]) == (name, "letters", "first")
        assert part["display_name"] == f"{told.parent.name}/run"
        assert set(part["tags"]) == {"small", "quick"}
    assert (first["notes"], second["notes"]) == ("a note", "another")


def test_its_config_is_the_whole_recipe_and_what_the_numbers_hang_on(told: Path) -> None:
    _, last = of_job(told, "pretrain")
    known = recipe(last)
    saved = yaml.safe_load((told / "config.yaml").read_text())
    assert saved["wandb"]["notes"] == "another"
    assert {key: known[key] for key in saved} == saved
    assert known["negatives_per_anchor"] == 254
    assert known["chance_loss"] == pytest.approx(math.log(255))
    assert known["versions"]["torch"] == version("torch")
    assert known["versions"]["wandb"] == version("wandb")
    assert known["git_commit"] == git_commit()
    assert len(known["data_fingerprint"]) == 64
    assert known["derived"]["steps"].startswith("8 (2 an epoch); 50 images")
    assert known["world_size"] == 1


def test_every_row_has_both_axes_and_the_chance_line_is_a_number(told: Path) -> None:
    first, second = of_job(told, "pretrain")
    for row in history(first) + history(second):
        assert {"trainer/global_step", "epoch"} <= row.keys()
    defined = {
        record["metric"].get("name", record["metric"].get("glob_name")): record["metric"]
        for record in first
        if record["type"] == "metric"
    }
    assert set(defined) == {"trainer/global_step", "epoch", "*"}
    assert defined["*"]["step_metric"] == "trainer/global_step"
    levels = [row["health/chance_loss"] for row in history(first) if "health/chance_loss" in row]
    assert levels == [pytest.approx(math.log(255))]


def test_the_summary_is_the_last_value_of_each_number(told: Path) -> None:
    last = summary(of_job(told, "pretrain")[-1])
    table = rows(told)
    names = ("train/loss", "probe/val_top1", "probe/val_top5", "knn/val_top1", "health/rankme")
    for name in names:
        values = [float(row[name]) for row in table if name in row]
        assert last[name] == pytest.approx(values[-1])
    assert last["trainer/global_step"] == 7


def test_the_last_few_checkpoints_are_artifacts(told: Path) -> None:
    first, second = of_job(told, "pretrain")
    assert aliases(first) == [{"latest", "epoch-2"}, {"latest", "epoch-3"}]
    assert aliases(second) == [{"latest", "epoch-4"}]
    (newest,) = artifacts(second)
    name = (told / "wandb_id.txt").read_text().strip()
    assert (newest["name"], newest["type"]) == (f"pretrain-{name}", "model")
    about = json.loads(newest["metadata"])
    assert about == {"epoch": 4, "sha256": sha256(told / "checkpoints" / "last.ckpt")}
    (file,) = newest["manifest"]["contents"]
    # What an upload will read is there, whole, and takes no room of its own.
    kept = Path(file["local_path"])
    assert kept.is_absolute()
    assert sha256(kept) == about["sha256"]
    assert kept.stat().st_ino == (told / "checkpoints" / "last.ckpt").stat().st_ino
    assert not (told / "wandb" / "models" / "epoch-1.ckpt").exists()


@pytest.mark.parametrize("command", ["linear", "knn"])
def test_an_evaluation_is_a_run_that_names_the_artifact_it_used(told: Path, command: str) -> None:
    (part,) = of_job(told, command)
    name = (told / "wandb_id.txt").read_text().strip()
    assert (begun(part)["project"], begun(part)["run_group"]) == ("letters", "first")
    known = recipe(part)
    assert known["artifact"] == f"letters/pretrain-{name}:epoch-4"
    assert (known["protocol"], known["split"], known["epoch"]) == (command, "val", 4)
    (result,) = (told / "results").glob(f"{command}-val-*.json")
    key = {"linear": "linear/val_top1", "knn": "knn_chosen/val_top1"}[command]
    assert summary(part)[key] == json.loads(result.read_text())["top1"]


def test_a_fine_tuning_is_a_run_that_names_the_artifact_it_started_from(told: Path) -> None:
    (home,) = (told / "finetune").iterdir()
    (part,) = records(home)
    assert (begun(part)["job_type"], begun(part)["project"]) == ("finetune", "letters")
    known = recipe(part)
    name = (told / "wandb_id.txt").read_text().strip()
    assert known["artifact"] == f"letters/pretrain-{name}:epoch-4"
    assert (known["data"]["label_fraction"], known["git_commit"]) == (0.2, git_commit())
    assert aliases(part) == [{"latest", "epoch-1"}, {"latest", "epoch-2"}]
    assert all({"trainer/global_step", "epoch"} <= row.keys() for row in history(part))


def test_killed_and_resumed_it_is_one_run_that_lacks_neither_number_nor_artifact(
    tmp_path: Path,
) -> None:
    directory, flag = tmp_path / "run", tmp_path / "flag"
    recipe = (*QUICK, *WORDS, "--wandb.keep", 9, "--trainer.max_epochs", 4, "--resume")
    paths = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "helpers")])
    about = {pausing.MOMENT: "validation 3", pausing.FLAG: str(flag), "PYTHONPATH": paths}
    command = ("fit", *recipe, "--trainer.callbacks+=pausing.Pause", "--run_dir", directory)
    process = start(*command, env=environment(**about))
    flushed = FLUSH_S + 1  # W&B's own process has written what it was told by then
    signal_when(
        process,
        lambda: flag.exists() and time.time() - flag.stat().st_mtime > flushed,
        signal.SIGKILL,
    )
    finish(process)
    try:
        fit(directory, *recipe)
    finally:
        wandb.teardown()
    first, second = records(directory)
    name = (directory / "wandb_id.txt").read_text().strip()
    assert begun(first)["run_id"] == begun(second)["run_id"] == name
    assert aliases(first) == []
    assert aliases(second) == [{"latest", f"epoch-{epoch}"} for epoch in (1, 2, 3, 4)]
    steps = [
        [row["trainer/global_step"] for row in history(part) if "train/loss" in row]
        for part in (first, second)
    ]
    # The third epoch was trained twice, and has the same numbers twice.
    assert steps == [[0, 1, 2, 3, 4, 5], [4, 5, 6, 7]]


@pytest.mark.ddp
@pytest.mark.timeout(180)
def test_of_two_ranks_one_has_a_run(tmp_path: Path) -> None:
    two = ("--trainer.devices", 2, "--trainer.strategy", "ddp", "--run_dir", tmp_path / "run")
    outcome = finish(start("fit", *QUICK, *WORDS, *two, "--tensorboard", "true"))
    assert outcome.code == 0, outcome
    assert outcome.out.count("Weights & Biases") == 1
    (found,) = records(tmp_path / "run")
    assert recipe(found)["world_size"] == 2
    assert [r["trainer/global_step"] for r in history(found) if "train/loss" in r] == [0, 1, 2, 3]
    assert aliases(found) == [{"latest", "epoch-1"}, {"latest", "epoch-2"}]
    assert len(list((tmp_path / "run" / "tensorboard").glob("events.*"))) == 1


def test_a_run_that_finds_no_data_is_no_run_and_says_nothing_of_one(tmp_path: Path) -> None:
    lost = ("--data.dataset", "npz", "--data.root", tmp_path / "none.npz")
    outcome = run("fit", *QUICK, *WORDS, *lost, "--run_dir", tmp_path / "run")
    assert "none.npz" in outcome.sentence
    assert outcome.out == ""
    assert not (tmp_path / "run").exists()


def test_a_resume_with_nothing_left_to_train_adds_no_part(finished: Path) -> None:
    outcome = fit(finished, "--wandb", "offline", "--resume")
    assert "nothing left to train" in outcome.out
    assert not list(finished.glob("wandb*"))


def test_online_all_versions_but_the_last_few_are_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        server.versions = [9, 11, 10, 8]  # in no order, and by number, not by name
        delete_old("me/letters/model", 2)
        assert server.versions == [11, 10]
        delete_old("me/letters/model", 2)
        assert server.versions == [11, 10]


def test_every_n_epochs_and_the_last(tmp_path: Path) -> None:
    try:
        fit(tmp_path / "run", *WORDS, "--wandb.log_model", 3, "--trainer.max_epochs", 4)
    finally:
        wandb.teardown()
    (found,) = records(tmp_path / "run")
    assert aliases(found) == [{"latest", "epoch-3"}, {"latest", "epoch-4"}]


@pytest.mark.parametrize("mode", ["off", "'off'", "offline", "{mode: offline, project: letters}"])
def test_a_config_may_give_the_mode_alone(mode: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"wandb: {mode}\n")
    recipe = QUICK[: QUICK.index("--wandb")]
    printed = run("fit", *recipe, "--config", tmp_path / "own.yaml", "--print_config").out
    expected = {"mode": "offline" if "offline" in mode else "off"}
    expected["project"] = "letters" if "letters" in mode else "simclr_pl"
    assert yaml.safe_load(printed)["wandb"].items() >= expected.items()


@pytest.mark.parametrize("spelling", [("--wandb", "off"), ("--wandb=off",), ("--wandb.mode=off",)])
def test_the_mode_alone_leaves_the_other_keys_of_a_config(
    spelling: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text("wandb: {mode: online, project: letters}\n")
    given = ("--config", tmp_path / "own.yaml", *spelling, "--print_config")
    saved = yaml.safe_load(run("fit", *given).out)["wandb"]
    assert (saved["mode"], saved["project"]) == ("off", "letters")


@pytest.mark.parametrize(("key", "value"), [("log_model", -1), ("keep", 0)])
def test_a_number_out_of_its_range_is_a_sentence(key: str, value: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"wandb.{key} is {value}, but must be"):
        WandbChoice(**{key: value})
    sentence = run("fit", *QUICK, f"--wandb.{key}", value, "--run_dir", tmp_path / "run").sentence
    assert f"wandb.{key} is {value}, but must be" in sentence
    assert not (tmp_path / "run").exists()


def test_a_commit_is_that_of_the_files_and_says_where_they_differ(tmp_path: Path) -> None:
    def git(*args: str) -> str:
        command = ["git", "-C", str(tmp_path), *args]
        return called(*command, check=True).stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    assert git_commit(package) is None  # no repository
    git("init", "--quiet")
    (package / "code.py").write_text("1")
    assert git_commit(package) is None  # one that knows nothing of these files
    git("add", ".")
    who = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    git(*who, "commit", "--quiet", "--message", "first")
    assert git_commit(package) == git("rev-parse", "HEAD")
    (tmp_path / "other.txt").write_text("not tracked")
    assert git_commit(package) == git("rev-parse", "HEAD")
    (package / "code.py").write_text("2")
    assert git_commit(package) == git("rev-parse", "HEAD") + "-dirty"
