"""TensorBoard's files, read back by TensorBoard itself."""

import io
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from commands import QUICK, REPOSITORY, fit, run
from filling import no_file_above
from PIL import Image
from run_files import rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simclr_pl.run.directory import RunDirectory
from simclr_pl.tracking.tensorboard import survived, tensorboard_logger

OVERLAY = ("--config", REPOSITORY / "configs" / "with" / "tensorboard.yaml")


def events(directory: Path) -> EventAccumulator:
    """Everything in a run's files, of all its sessions."""
    # 0 is all of them.
    found = EventAccumulator(
        str(directory / "tensorboard"), {"scalars": 0, "images": 0, "tensors": 0}
    )
    found.Reload()
    return found


def numbers(directory: Path) -> dict[str, dict[int, float]]:
    """Values by name and step."""
    found = events(directory)
    return {
        name: {event.step: event.value for event in found.Scalars(name)}
        for name in found.Tags()["scalars"]
    }


@pytest.mark.long
def test_the_overlay_gives_the_same_numbers_and_pictures_over_a_resume(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    recipe = (*QUICK[: QUICK.index("--wandb")], *OVERLAY, "--pictures.every_n_epochs", 2)
    for options in (("--trainer.max_epochs", 2), ("--trainer.max_epochs", 3, "--resume")):
        outcome = run("fit", *recipe, *options, "--run_dir", directory)
        assert (outcome.code, outcome.err) == (0, ""), outcome
        assert "Weights & Biases" not in outcome.out
    logged = numbers(directory)
    for row in rows(directory):
        for name in row.keys() - {"step", "epoch"}:
            assert logged[name][int(row["step"])] == pytest.approx(float(row[name]), rel=1e-6), name
    assert set(logged["epoch"]) == set(range(6))
    found = events(directory)
    names = {"neighbours", "confusion", "map", "similarities", "views"}
    assert set(found.Tags()["images"]) == {f"pictures/{name}" for name in names}
    steps = [image.step for image in found.Images("pictures/neighbours")]
    assert steps == [3, 5]
    assert run("report", directory).code == 0
    image = found.Images("pictures/confusion")[-1]
    with (
        Image.open(io.BytesIO(image.encoded_image_string)) as mine,
        Image.open(directory / "pictures" / "confusion.png") as reported,
    ):
        assert np.array_equal(np.asarray(mine), np.asarray(reported.convert("RGB")))
    (text,) = {
        event.tensor_proto.string_val[0] for event in found.Tensors("config/text_summary")[:1]
    }
    assert b"temperature" in text
    assert b"data_fingerprint" in text


def test_a_fine_tuning_writes_its_numbers_too(finished: Path) -> None:
    short = ("--label_fraction", 0.2, "--epochs", 2, "--trainer.accelerator", "cpu")
    options = ("--wandb", "off", "--tensorboard", "--run_dir", finished)
    outcome = run("finetune", *short, *options)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    (home,) = (finished / "finetune").iterdir()
    logged = numbers(home)
    for row in rows(home):
        if "finetune/loss" in row:
            value = logged["finetune/loss"][int(row["step"])]
            assert value == pytest.approx(float(row["finetune/loss"]), rel=1e-6)


@pytest.mark.long
def test_a_resume_hides_what_a_killed_run_had_logged_behind_its_checkpoint(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    fit(directory, "--tensorboard", "true")
    first = numbers(directory)["train/loss"]
    kept = directory / "checkpoints" / "last.ckpt"
    earlier = kept.read_bytes()
    fit(directory, "--tensorboard", "true", "--resume", "--trainer.max_epochs", 3)
    kept.write_bytes(earlier)  # as if it had been killed in its third epoch
    fit(directory, "--tensorboard", "true", "--resume", "--trainer.max_epochs", 3)
    found = events(directory).Scalars("train/loss")
    assert [event.step for event in found] == list(range(6))
    assert {event.step: event.value for event in found}.items() >= first.items()


@pytest.mark.parametrize("command", ["fit", "finetune"])
def test_without_the_package_a_sentence_says_what_to_install(
    command: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    options = {
        "fit": (*QUICK, *OVERLAY, "--run_dir", tmp_path / "run"),
        "finetune": ("--run_dir", finished, "--label_fraction", 0.2, "--tensorboard"),
    }
    sentence = run(command, *options[command]).sentence
    assert "TensorBoard is not installed" in sentence
    assert "pip install tensorboard" in sentence
    assert not (tmp_path / "run").exists()
    assert not (finished / "finetune").exists()


def test_files_that_can_no_longer_be_written_end_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard's thread meets what is wrong, and raises it in whoever logs next."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # it ends with a traceback
    logger = tensorboard_logger(RunDirectory(tmp_path / "run"), None)
    logger.log_metrics({"train/loss": 1.0}, 0)
    logger.experiment.flush()
    (file,) = (tmp_path / "run").rglob("events.*")
    with no_file_above(file.stat().st_size):
        for step in range(1, 5):
            logger.log_metrics({"train/loss": 1.0}, step)
            survived(logger, logger.experiment.flush)
        logger.save()
        logger.finalize("success")
    said = capsys.readouterr().out
    assert said.count("TensorBoard: no more is logged there ([Errno 27] File too large") == 1
    assert said.count("\n") == 1
