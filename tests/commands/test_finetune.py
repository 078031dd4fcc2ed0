"""finetune as a command: any number of devices, kills and resumes, files, and what goes wrong."""

import io
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import wandb
import yaml
from commands import (
    DRAWING,
    Outcome,
    cells,
    checkpoint,
    files,
    finish,
    fit,
    rows,
    run,
    same_weights,
    signal_when,
    start,
)
from distances import far
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from offline import history, recipe, records
from PIL import Image
from ranks import ranks

from simclr_pl import ContrastiveDataModule, load_encoder
from simclr_pl.core.model.checkpoint import KEY
from simclr_pl.protocols.backbone import load_backbone
from simclr_pl.protocols.labelled_datamodule import LabelledDataModule
from simclr_pl.run.results import sha256

FAST = (
    *("--label_fraction", "0.1", "--epochs", "4", "--batch_size", "50", "--wandb", "off"),
    *("--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1"),
)
"""12 steps of 43 images on digits: a third of a second."""

STEPS = 12


def without(*options: str) -> list[str]:
    """`FAST`, less some of its options."""
    pairs = zip(FAST[::2], FAST[1::2], strict=True)
    return [part for pair in pairs if pair[0] not in options for part in pair]


def finetune(*args: object) -> Outcome:
    """Fine-tunes; it has to work without a word on standard error."""
    outcome = run("finetune", *FAST, *args)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return outcome


def result(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def home(run_dir: Path, name: str = "finetune-0.1-seed0") -> Path:
    """Where a training is kept."""
    return run_dir / "finetune" / name


def weights(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "last.ckpt"


def distance(a: Path, b: Path) -> float:
    """The largest relative difference of two runs' weights, statistics and optimisers."""
    keys = ("state_dict", "optimizer_states")
    return far(*([checkpoint(path)[key] for key in keys] for path in (a, b)))


def assert_same_bits(a: Path, b: Path) -> None:
    """The same training in all that is written about it."""
    assert same_weights(checkpoint(a), checkpoint(b))
    assert distance(a, b) == 0
    assert checkpoint(a)["lr_schedulers"] == checkpoint(b)["lr_schedulers"]
    assert cells(a) == cells(b)


# What it does -------------------------------------------------------------------------------------


def test_a_result_says_how_it_came_about(finished: Path) -> None:
    before = weights(finished).read_bytes()
    printed = finetune("--run_dir", finished).out
    found = result(finished / "results" / "finetune-0.1-test-seed0.json")
    assert (found["protocol"], found["split"], found["seed"]) == ("finetune-0.1", "test", 0)
    assert (found["epoch"], found["dataset"], found["pretraining_seed"]) == (2, "digits", 0)
    assert (found["labels"], found["epochs"], found["label_fraction"]) == (130, 4, 0.1)
    assert (found["batch_size"], found["learning_rate"], found["weight_decay"]) == (50, 0.05, 0)
    assert not any(found[k] for k in ("from_scratch", "head_only", "from_projector_layer"))
    assert found["checkpoint_sha256"] == sha256(weights(finished))
    assert found["versions"]["torch"]
    assert 0.05 < found["top1"] <= found["top5"] <= 1
    assert "finetune-0.1, from pretrained weights, scored on the test split of digits" in printed
    assert f"{home(finished)}: 130 labelled images, 4 epochs of 3 x 43 images" in printed
    assert f"seed 0: top1 {found['top1']:.4f}, top5 {found['top5']:.4f}" in printed
    assert weights(finished).read_bytes() == before


def test_the_number_is_that_of_the_last_epoch_s_network_on_the_test_split(finished: Path) -> None:
    finetune("--run_dir", finished, "--learning_rate", "0.5")
    saved = checkpoint(home(finished))
    assert saved["global_step"] == STEPS
    data = ContrastiveDataModule("digits")
    data.setup()
    source = data.splits.test
    encoder = load_encoder(weights(home(finished)))
    head = [saved["state_dict"][f"head.{name}"] for name in ("weight", "bias")]
    with torch.no_grad():
        logits = torch.nn.functional.linear(encoder(data.views.clean(source.images)), *head)
    found = result(finished / "results" / "finetune-0.1-test-seed0.json")
    right = logits.topk(5).indices == source.labels[:, None]
    assert found["top1"] == pytest.approx(float(right[:, 0].double().mean()), abs=0.006)
    assert found["top5"] == pytest.approx(float(right.any(1).double().mean()), abs=0.006)
    last = rows(home(finished))[-1]
    assert float(last["finetune/test_top1"]) == pytest.approx(found["top1"])


def test_more_labels_and_training_are_worth_something(finished: Path) -> None:
    finetune("--run_dir", finished, "--label_fraction", "1.0", "--learning_rate", "0.5")
    found = result(finished / "results" / "finetune-1-test-seed0.json")
    assert found["labels"] == 1312
    assert found["top1"] > 0.4  # chance is a tenth


def test_val_is_scored_without_touching_test(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    loader = LabelledDataModule.evaluation_loader

    def spy(self: LabelledDataModule, split: Any, cut: Any) -> Any:
        asked.append(split)
        return loader(self, split, cut)

    monkeypatch.setattr(LabelledDataModule, "evaluation_loader", spy)
    finetune("--run_dir", finished, "--split", "val")
    assert set(asked) == {"val"}
    (file,) = (finished / "results").iterdir()
    assert file.name == "finetune-0.1-val-seed0.json"
    found = result(file)
    last = [row for row in rows(home(finished)) if "finetune/val_top1" in row][-1]
    assert found["top1"] == pytest.approx(float(last["finetune/val_top1"]))
    # A data set that has none will do.
    untested = npz(tmp_path / "untested.npz", test=False)
    finetune(
        "--run_dir", finished, "--split", "val", "--data.dataset", "npz", "--data.root", untested
    )


def test_seeds_are_trainings_of_their_own_with_mean_and_standard_deviation(finished: Path) -> None:
    printed = finetune("--run_dir", finished, "--seeds", 0, 1, 2).out
    names = [f"finetune-0.1-test-seed{seed}.json" for seed in (0, 1, 2)]
    assert sorted(p.name for p in (finished / "results").iterdir()) == names
    top1 = [result(finished / "results" / name)["top1"] for name in names]
    mean, spread = statistics.mean(top1), statistics.stdev(top1)
    assert f"top1 {mean:.4f} ± {spread:.4f} (standard deviation of 3 seeds)" in printed
    trained = [checkpoint(home(finished, f"finetune-0.1-seed{seed}")) for seed in (0, 1, 2)]
    assert not same_weights(trained[0], trained[1])
    # A seed's number is the same in any company.
    alone = finished / "alone"
    finetune("--checkpoint", weights(finished), "--out", alone, "--seeds", 1)
    assert_same_bits(alone / "finetune-0.1-seed1", home(finished, "finetune-0.1-seed1"))


def test_without_seeds_the_run_s_own_is_used(tmp_path: Path) -> None:
    fit(tmp_path / "run", "--seed_everything", 5)
    finetune("--run_dir", tmp_path / "run")
    assert (tmp_path / "run" / "results" / "finetune-0.1-test-seed5.json").is_file()
    assert checkpoint(home(tmp_path / "run", "finetune-0.1-seed5"))[KEY]["seed"] == 5


def test_protocols_have_names_and_start_where_they_say(finished: Path) -> None:
    still = ("--learning_rate", "1e-30", "--epochs", "1")
    told = {
        "finetune-projector1-0.1": ("--from_projector_layer", 1),
        "supervised-0.1": ("--from_scratch",),
        "supervised-projector2-0.1": ("--from_scratch", "--from_projector_layer", 2),
        "finetune-head-0.1": ("--head_only",),
        "finetune-projector1-head-0.1": ("--head_only", "--from_projector_layer", 1),
    }
    pretrained = checkpoint(finished)
    for protocol, args in told.items():
        printed = finetune("--run_dir", finished, "--seeds", 3, *still, *args).out
        found = result(finished / "results" / f"{protocol}-test-seed3.json")
        scratch, layers = protocol.startswith("supervised"), found["from_projector_layer"]
        assert found["protocol"] == protocol
        assert found["from_scratch"] is scratch
        assert found["head_only"] is ("head" in protocol)
        assert found["epoch"] == (0 if scratch else 2)
        assert ("from fresh weights" if scratch else "from pretrained weights") in printed
        state = checkpoint(home(finished, f"{protocol}-seed3"))["state_dict"]
        began = load_backbone(pretrained, "it", layers, 3 if scratch else None)
        for part in ("encoder", "projector"):
            own = {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(part)}
            named = dict(getattr(began, part).named_parameters())
            assert named.keys() <= own.keys()
            for name, value in named.items():
                torch.testing.assert_close(own[name], value, rtol=0, atol=1e-20)
        assert any(k.startswith("projector.") for k in state) == (layers > 0)


def test_head_only_is_the_frozen_network_to_the_bit(finished: Path) -> None:
    finetune("--run_dir", finished, "--head_only", "--learning_rate", "1")
    before, after = checkpoint(finished), checkpoint(home(finished, "finetune-head-0.1-seed0"))
    for name, value in after["state_dict"].items():
        if not name.startswith("head."):
            assert value.equal(before["state_dict"][name]), name
    assert bool(after["state_dict"]["head.weight"].any())


def test_the_length_of_training_follows_the_labels(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simclr_pl.commands.finetune.STEPS", 25)
    monkeypatch.setattr("simclr_pl.commands.finetune.EPOCHS", 6)
    for batch, epochs, steps in (("130", 30, 30), ("50", 10, 30), ("22", 10, 60)):
        args = (*without("--epochs", "--batch_size"), "--batch_size", batch)
        out = finished / batch
        outcome = run("finetune", *args, "--run_dir", finished, "--out", out)
        assert outcome.code == 0, outcome
        assert result(finished / "results" / "finetune-0.1-test-seed0.json")["epochs"] == epochs
        assert checkpoint(out / "finetune-0.1-seed0")["global_step"] == steps
        validated = [r for r in rows(out / "finetune-0.1-seed0") if "finetune/val_top1" in r]
        assert len(validated) == 10
        assert int(validated[-1]["step"]) == steps - 1


def test_config_yaml_holds_the_recipe_and_metrics_csv_the_curves(finished: Path) -> None:
    finetune("--run_dir", finished, "--head_only", "--weight_decay", "1e-4")
    config = yaml.safe_load((home(finished, "finetune-head-0.1-seed0") / "config.yaml").read_text())
    assert config["seed_everything"] == 0
    assert config["checkpoint"]["path"] == str(weights(finished))
    assert config["checkpoint_sha256"] == sha256(weights(finished))
    assert (config["label_fraction"], config["head_only"], config["weight_decay"]) == (
        0.1,
        True,
        1e-4,
    )
    assert (config["labels"], config["classes"]) == (130, 10)
    assert config["trainer"]["max_epochs"] == 4
    assert config["trainer"]["precision"] == "32-true"
    about = checkpoint(finished)[KEY]
    assert config["data"]["dataset"] == "digits"
    assert config["data"]["mean"] == list(about["mean"])
    assert config["data"]["image_size"] == about["image_size"]
    assert (config["data"]["batch_size"], config["data"]["jitter"]) == (50, 0)
    assert not {"run_dir", "resume", "epochs"} & config.keys()
    table = rows(home(finished, "finetune-head-0.1-seed0"))
    assert [int(row["step"]) for row in table[:STEPS]] == list(range(STEPS))
    assert all(
        {"finetune/loss", "train/lr", "train/grad_norm"} <= row.keys() for row in table[:STEPS]
    )
    assert table[STEPS].keys() == {"step", "epoch", "finetune/test_top1", "finetune/test_top5"}
    assert table[STEPS]["epoch"] == "3"


def test_a_fine_tuned_checkpoint_is_a_checkpoint(finished: Path, tmp_path: Path) -> None:
    finetune("--run_dir", finished, "--from_projector_layer", 1)
    tuned = home(finished, "finetune-projector1-0.1-seed0")
    encoder = load_encoder(weights(tuned))
    state = checkpoint(tuned)["state_dict"]
    assert all(v.equal(state[f"encoder.{k}"]) for k, v in encoder.state_dict().items())
    assert encoder.image_size == 8
    for command in ("knn", "linear"):
        quick = ("--epochs", 2) if command == "linear" else ()
        outcome = run(command, "--checkpoint", weights(tuned), *quick)
        assert (outcome.code, outcome.err) == (0, ""), outcome
        found = result(tuned / "results" / f"{command}-test-seed0.json")
        assert found["checkpoint_sha256"] == sha256(weights(tuned))
    finetune("--run_dir", tuned)  # once more, from there
    began = checkpoint(home(tuned))
    assert not any(name.startswith("projector.") for name in began["state_dict"])
    sentence = run("finetune", *FAST, "--run_dir", tuned, "--from_projector_layer", 1).sentence
    assert "holds no projection head" in sentence
    assert files(finished)["checkpoints/last.ckpt"]  # the pretrained one is still there


def test_a_fine_tuned_run_is_not_taken_for_a_pretraining(finished: Path) -> None:
    finetune("--run_dir", finished)
    tuned = home(finished)
    for command in (
        ("validate", "--run_dir", tuned),
        ("test", "--ckpt_path", weights(tuned)),
        ("fit", "--config", tuned / "config.yaml"),
    ):
        sentence = run(*command).sentence
        assert f"is of a fine-tuning, and {command[0]} is for pretraining" in sentence
        assert "finetune --resume" in sentence


def test_bfloat16_and_clipping_train_too(finished: Path) -> None:
    finetune("--run_dir", finished, "--trainer.precision", "bf16-mixed", "--learning_rate", "0.5")
    half = curve(home(finished))
    out = finished / "whole"
    finetune("--run_dir", finished, "--learning_rate", "0.5", "--out", out)
    assert half != curve(out / "finetune-0.1-seed0")
    assert half == pytest.approx(curve(out / "finetune-0.1-seed0"), rel=0.05)
    out = finished / "clipped"
    finetune("--run_dir", finished, "--trainer.gradient_clip_val", "1e-12", "--out", out)
    clipped = checkpoint(out / "finetune-0.1-seed0")["state_dict"]
    assert float(clipped["head.weight"].abs().max()) < 1e-10


def curve(directory: Path, name: str = "finetune/loss") -> list[float]:
    return [float(row[name]) for row in rows(directory) if name in row]


# Devices ------------------------------------------------------------------------------------------

DOUBLE = ("--trainer.precision", "64-true", "--learning_rate", "1.0", "--weight_decay", "1e-3")
"""Float64, and steps that are large enough to leave the start behind."""


def as_rank(*args: object) -> Outcome:
    """A command as one of several ranks."""
    # Lightning takes it from the environment when it is imported, which was before the fork.
    rank_zero_only.rank = dist.get_rank()
    return run(*args)


def on_devices(run_dir: Path, devices: int, *args: object) -> None:
    command = (
        "finetune",
        *FAST,
        *DOUBLE,
        "--run_dir",
        run_dir,
        "--trainer.devices",
        devices,
        *args,
    )
    outcomes = ranks(devices, as_rank, *command, timeout=120)
    assert {(o.code, o.err) for o in outcomes} == {(0, "")}, outcomes
    assert [bool(o.out) for o in outcomes] == [True, *[False] * (devices - 1)]


def assert_same_end(one: Path, other: Path, name: str = "finetune-0.1", seed: int = 0) -> None:
    """The same training and the same accuracies, to float64's rounding."""
    a, b = (home(path, f"{name}-seed{seed}") for path in (one, other))
    assert checkpoint(a)["global_step"] == checkpoint(b)["global_step"] == STEPS
    assert distance(a, b) < 1e-9
    for row, twin in zip(rows(a), rows(b), strict=True):
        assert row.keys() == twin.keys()
        for key in row:
            assert float(twin[key]) == pytest.approx(float(row[key]), rel=1e-6), key
    scores = [result(p / "results" / f"{name}-test-seed{seed}.json") for p in (one, other)]
    for key in ("top1", "top5", "labels", "epochs"):
        assert scores[0][key] == scores[1][key]
    # It says something: the network is another than it was.
    assert max(curve(a)) - min(curve(a)) > 0.01


@pytest.mark.ddp
def test_three_devices_train_and_score_as_one(source: Path, tmp_path: Path) -> None:
    """43 images over three devices are 14, 14 and 15; 339 test images don't divide either."""
    for devices in (1, 3):
        shutil.copytree(source, tmp_path / str(devices))
    finetune("--run_dir", tmp_path / "1", *DOUBLE, "--trainer.devices", 1)
    on_devices(tmp_path / "3", 3)
    assert_same_end(tmp_path / "1", tmp_path / "3")


@pytest.mark.ddp
def test_one_command_starts_two_devices_for_one_seed_after_the_other(
    source: Path, tmp_path: Path
) -> None:
    for devices in (1, 2):
        shutil.copytree(source, tmp_path / str(devices))
    more = (*DOUBLE, "--from_projector_layer", 1, "--seeds", 0, 1)
    finetune("--run_dir", tmp_path / "1", *more, "--trainer.devices", 1)
    command = ("finetune", *FAST, *more, "--run_dir", tmp_path / "2", "--trainer.devices", 2)
    outcome = finish(start(*command), timeout=240)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    assert outcome.out.count("seed 1: top1") == 1  # rank 0 alone speaks
    for seed in (0, 1):
        assert_same_end(tmp_path / "1", tmp_path / "2", "finetune-projector1-0.1", seed)


# Kills and resumes --------------------------------------------------------------------------------

LONG = ("--epochs", "40", "--learning_rate", "0.3")
"""120 steps, with a checkpoint in every twelfth."""


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose encoder draws random numbers in training."""
    directory = tmp_path_factory.mktemp("drawing") / "run"
    fit(directory, "--model.encoder_args", DRAWING)
    return directory


def test_killed_and_resumed_it_ends_as_if_left_alone(drawing: Path, tmp_path: Path) -> None:
    command = ("--checkpoint", weights(drawing), *LONG)
    killed = tmp_path / "killed"
    process = start("finetune", *FAST, *command, "--seeds", 0, 1, "--out", killed)
    first, second = (killed / f"finetune-0.1-seed{seed}" for seed in (0, 1))
    # In mid-epoch and between two checkpoints of the second seed; the first one is done.
    signal_when(
        process,
        lambda: len(rows(second)) > 36 and len(rows(second)) % 12 in (4, 5, 7),
        signal.SIGKILL,
    )
    assert finish(process).code == -signal.SIGKILL
    saved, reached = checkpoint(second)["global_step"], len(rows(second))
    assert 36 <= saved <= reached < 120
    before = files(first)
    printed = finetune(*command, "--seeds", 0, 1, "--out", killed, "--resume").out
    assert printed.count("nothing left to train") == 1
    assert files(first) == before
    whole = tmp_path / "whole"
    finetune(*command, "--seeds", 1, "--out", whole)
    assert_same_bits(second, whole / "finetune-0.1-seed1")
    assert checkpoint(second)["global_step"] == 120


def test_a_resume_of_a_finished_run_just_scores_again(finished: Path) -> None:
    finetune("--run_dir", finished)
    scored = finished / "results" / "finetune-0.1-test-seed0.json"
    before, told = files(home(finished)), result(scored)
    scored.unlink()
    printed = finetune("--run_dir", finished, "--resume").out
    assert "nothing left to train" in printed
    assert "a larger --epochs goes on" in printed
    assert files(home(finished)) == before
    assert result(scored) == told
    finetune("--run_dir", finished, "--resume", "--split", "val")  # or another split
    assert (finished / "results" / "finetune-0.1-val-seed0.json").is_file()
    assert same_weights(checkpoint(home(finished)), torch_of(before["checkpoints/last.ckpt"]))


def torch_of(content: bytes) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return loaded


def test_a_resume_begins_where_nothing_is_there_yet(finished: Path) -> None:
    finetune("--run_dir", finished, "--resume")
    out = finished / "other"
    finetune("--run_dir", finished, "--out", out)
    assert_same_bits(home(finished), out / "finetune-0.1-seed0")


def test_a_resume_with_more_epochs_goes_on_on_the_new_cosine(finished: Path) -> None:
    finetune("--run_dir", finished)
    printed = finetune("--run_dir", finished, "--resume", "--epochs", 8).out
    assert "The schedule's end moves from epoch 4 to 8" in printed
    table = rows(home(finished))
    assert [int(row["step"]) for row in table] == list(range(2 * STEPS + 1))
    peak = 0.05 * 43 / 256
    cosine = [peak * (1 + np.cos(np.pi * step / 24)) / 2 for step in range(12, 24)]
    assert [float(row["train/lr"]) for row in table[12:24]] == pytest.approx(cosine, rel=1e-5)
    assert "finetune/test_top1" not in table[STEPS]  # what the first end had scored is gone
    sentence = run("finetune", *FAST, "--run_dir", finished, "--resume", "--epochs", 6).sentence
    assert "can move the schedule's end out, not in" in sentence


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--learning_rate", "0.2"), "learning_rate was 0.05"),
        (("--weight_decay", "0.1"), "weight_decay was 0.0"),
        (("--batch_size", "60"), "batch_size was 50"),
        (("--trainer.precision", "64-true"), "trainer.precision was 32-true"),
        (("--trainer.gradient_clip_val", "1"), "trainer.gradient_clip_val was None"),
    ],
)
def test_a_resume_of_another_recipe_is_a_sentence(
    finished: Path, args: tuple[str, ...], words: str
) -> None:
    finetune("--run_dir", finished)
    before = files(finished)
    outcome = run("finetune", *FAST, "--run_dir", finished, "--resume", *args)
    assert outcome.code == 2
    assert words in outcome.sentence
    assert f"in {home(finished)} and is" in outcome.sentence
    assert "another --out" in outcome.sentence
    assert files(finished) == before


def test_a_resume_from_another_checkpoint_is_a_sentence_and_from_a_moved_one_is_none(
    finished: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "out")
    finetune("--run_dir", finished, *out)
    moved = tmp_path / "moved"
    finished.rename(moved)
    finetune("--run_dir", moved, *out, "--resume")
    fit(tmp_path / "other", "--seed_everything", 1)
    other = ("--run_dir", tmp_path / "other", "--seeds", 0, *out, "--resume")
    assert "checkpoint_sha256 was" in run("finetune", *FAST, *other).sentence


def test_a_resume_with_other_data_in_the_same_place_is_a_sentence(
    finished: Path, tmp_path: Path
) -> None:
    root = npz(tmp_path / "data.npz")
    data = ("--data.dataset", "npz", "--data.root", root, "--label_fraction", "0.5")
    finetune("--run_dir", finished, *data)
    for classes, images, words in ((4, 80, "labels was 56"), (7, 120, "classes was 4")):
        npz(root, classes=classes, images=images)
        sentence = run("finetune", *FAST, "--run_dir", finished, *data, "--resume").sentence
        assert words in sentence


def test_a_directory_that_holds_a_run_is_a_sentence_before_anything_is_trained(
    finished: Path,
) -> None:
    finetune("--run_dir", finished, "--seeds", 1)
    before = files(finished)
    outcome = run("finetune", *FAST, "--run_dir", finished, "--seeds", 0, 1)
    assert outcome.code == 2
    assert f"{home(finished, 'finetune-0.1-seed1')} already holds a run" in outcome.sentence
    assert "--resume" in outcome.sentence
    assert "--out" in outcome.sentence
    assert files(finished) == before


def test_a_broken_checkpoint_of_its_own_is_a_sentence(finished: Path) -> None:
    finetune("--run_dir", finished)
    weights(home(finished)).write_bytes(weights(home(finished)).read_bytes()[:5000])
    sentence = run("finetune", *FAST, "--run_dir", finished, "--resume").sentence
    assert "truncated" in sentence
    assert str(weights(home(finished))) in sentence


def test_ctrl_c_says_how_to_go_on(finished: Path) -> None:
    def press() -> None:
        while len(rows(home(finished))) < 5:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    someone = threading.Thread(target=press)
    handler = signal.getsignal(signal.SIGINT)  # Lightning doesn't put it back
    someone.start()
    try:
        outcome = run("finetune", *FAST, "--run_dir", finished, "--epochs", 4000)
    finally:
        signal.signal(signal.SIGINT, handler)
        someone.join()
    assert outcome.code == 130
    assert outcome.sentence.startswith("error: interrupted at step ")
    assert outcome.sentence.endswith("the same command with --resume continues")
    assert not (finished / "results").exists()


# Weights & Biases ---------------------------------------------------------------------------------


def test_each_seed_is_an_offline_run_of_its_own(finished: Path) -> None:
    try:
        outcome = run("finetune", *without("--wandb"), "--run_dir", finished, "--seeds", 0, 1)
        assert (outcome.code, outcome.err) == (0, ""), outcome
        assert wandb.run is None
    finally:
        wandb.teardown()
    ids = set()
    for seed in (0, 1):
        directory = home(finished, f"finetune-0.1-seed{seed}")
        assert f"wandb sync {directory}/wandb/offline-run-*" in outcome.out
        (found,) = records(directory)
        ids.add((directory / "wandb_id.txt").read_text())
        logged = history(found)
        losses = [
            (r["trainer/global_step"], r["finetune/loss"]) for r in logged if "finetune/loss" in r
        ]
        told = [(int(r["step"]), float(r["finetune/loss"])) for r in rows(directory)[:STEPS]]
        assert losses == told
        scored = result(finished / "results" / f"finetune-0.1-test-seed{seed}.json")
        (test,) = [r["finetune/test_top1"] for r in logged if "finetune/test_top1" in r]
        assert test == pytest.approx(scored["top1"])
        assert "finetune/val_top1" in {key for row in logged for key in row}
        assert "label_fraction" in json.dumps(recipe(found))
    assert len(ids) == 2


# Transfer -----------------------------------------------------------------------------------------


def npz(
    path: Path,
    channels: int = 1,
    classes: int = 4,
    images: int = 120,
    *,
    test: bool = True,
    labels: tuple[str, ...] = ("train", "val", "test"),
    val: bool = False,
) -> Path:
    """Images of 12 x 12 pixels, whose class is how bright they are."""
    of = np.arange(images) % classes
    noise = np.random.default_rng(0).integers(0, 40, (images, 12, 12, channels))
    pixels = (noise + 200 // classes * of[:, None, None, None]).astype(np.uint8)
    held = {}
    for split in ("train", *["val"] * val, *["test"] * test):
        held[f"{split}_images"] = pixels
        if split in labels:
            held[f"{split}_labels"] = of
    np.savez(path, **held)
    return path


def test_transfer_has_results_and_runs_of_its_own(finished: Path, tmp_path: Path) -> None:
    data = ("--data.dataset", "npz", "--data.root", npz(tmp_path / "other.npz"))
    printed = finetune("--run_dir", finished, *data, "--learning_rate", "0.5").out
    assert "test split of npz" in printed
    found = result(finished / "results" / "npz" / "finetune-0.1-test-seed0.json")
    assert (found["dataset"], found["labels"]) == ("npz", 12)
    tuned = home(finished, "npz") / "finetune-0.1-seed0"
    config = yaml.safe_load((tuned / "config.yaml").read_text())["data"]
    about = checkpoint(finished)[KEY]
    # Images are seen as the encoder was trained to see them.
    assert (config["mean"], config["std"]) == (list(about["mean"]), list(about["std"]))
    assert config["image_size"] == about["image_size"]
    assert checkpoint(tuned)["state_dict"]["head.weight"].shape == (4, 16)
    assert not (finished / "results" / "finetune-0.1-test-seed0.json").exists()
    finetune("--run_dir", finished)  # beside the run's own
    outcome = run("knn", "--run_dir", tuned)
    assert (outcome.code, outcome.err) == (0, ""), outcome


def test_a_checkpoint_on_its_own_keeps_everything_beside_it(finished: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone" / "deep" / "model.ckpt"
    alone.parent.mkdir(parents=True)
    shutil.copy(weights(finished), alone)
    sentence = run("finetune", *FAST, "--checkpoint", alone).sentence
    assert "no config.yaml" in sentence
    assert "--data.dataset" in sentence
    finetune("--checkpoint", alone, "--data.dataset", "digits")
    assert (alone.parent / "results" / "finetune-0.1-test-seed0.json").is_file()
    finetune("--run_dir", finished)
    # Without the run's crops to go by it has the defaults', which are the same here.
    assert_same_bits(alone.parent / "finetune" / "finetune-0.1-seed0", home(finished))


@pytest.mark.processes
def test_image_files_are_decoded_by_workers_that_end(tmp_path: Path) -> None:
    for number in range(48):
        folder = tmp_path / "images" / ("dark", "bright")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 60, (20, 24, 3)) + 150 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    data = ("--data.dataset", "folder", "--data.root", tmp_path / "images")
    fit(tmp_path / "run", *data, "--data.batch_size", 8, "--data.num_workers", 1)
    more = ("--label_fraction", "0.5", "--split", "val", "--batch_size", "8", "--epochs", "2")
    finetune("--run_dir", tmp_path / "run", *more, "--seeds", 0, 1)
    assert len(list((tmp_path / "run" / "results").iterdir())) == 2
    assert not multiprocessing.active_children()


# What goes wrong ----------------------------------------------------------------------------------


def refused(finished: Path, *args: object, code: int = 2) -> str:
    """The sentence of a command that fails before its first step and leaves nothing behind."""
    before = files(finished)
    outcome = run("finetune", *FAST, "--run_dir", finished, *args)
    assert outcome.code == code
    sentence = outcome.sentence
    assert files(finished) == before
    assert not (finished / "finetune").exists()
    return sentence


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--label_fraction", "0"), ("label_fraction is 0", "above 0 and at most 1")),
        (("--label_fraction", "1.1"), ("label_fraction is 1.1", "above 0 and at most 1")),
        (("--label_fraction", "some"), ("label_fraction", "expected float, got some")),
        (("--label_fraction", "0.001"), ("leaves class", "empty", "give at least 0.01")),
        (("--seeds",), ("seeds is empty", "--seeds 0 1 2")),
        (("--seeds", "0", "1", "0"), ("seeds", "0 twice")),
        (("--split", "train"), ("split", "train")),
        (("--splt", "val"), ("unknown key 'splt'", "did you mean 'split'")),
        (("--epochs", "0"), ("epochs is 0", "at least 1")),
        (("--batch_size", "1"), ("batch_size is 1", "at least 2")),
        (("--learning_rate", "0"), ("learning_rate is 0.0", "above 0")),
        (("--learning_rate", ".nan"), ("learning_rate is nan", "above 0")),
        (("--weight_decay", "-1"), ("weight_decay is -1.0", "0 or more")),
        (("--from_projector_layer", "-1"), ("from_projector_layer is -1", "at least 0")),
        (("--from_projector_layer", "3"), ("from_projector_layer is 3", "has 2 layers")),
        (("--from_scratch", "--head_only"), ("--from_scratch", "--head_only", "one of them")),
        (("--checkpoint", "x.ckpt"), ("--checkpoint", "--run_dir", "one of them")),
        (("--config", "nowhere.yaml"), ("nowhere.yaml",)),
        (("--data.dataset", "digit"), ("data set 'digit'", "did you mean digits")),
        (("--data.datset", "digits"), ("data.datset", "did you mean 'data.dataset'")),
        (("--trainer.device", "2"), ("trainer.device", "did you mean 'trainer.devices'")),
        (("--wandb", "of"), ("wandb", "of")),
    ],
)
def test_a_value_that_cannot_be_is_a_sentence(
    args: tuple[str, ...], words: tuple[str, ...], finished: Path
) -> None:
    sentence = refused(finished, *args)
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("--trainer.precision", "65"), "'65'"),
        (("--trainer.strategy", "nope"), "nope"),
        (("--trainer.accelerator", "abacus"), "abacus"),
    ],
)
def test_what_lightning_refuses_leaves_nothing_behind(
    args: tuple[str, ...], word: str, finished: Path
) -> None:
    assert word in refused(finished, *args)


def test_the_fraction_and_a_checkpoint_are_required(finished: Path) -> None:
    assert "--label_fraction is required" in run("finetune", "--run_dir", finished).sentence
    assert "--checkpoint FILE or --run_dir RUN" in run("finetune", *FAST).sentence
    assert "nowhere" in run("finetune", *FAST, "--run_dir", "nowhere").sentence
    assert "nowhere.ckpt" in run("finetune", *FAST, "--checkpoint", "nowhere.ckpt").sentence


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"channels": 3}, ("3 channels", "trained on 1")),
        ({"test": False}, ("no test split", "score another split")),
        ({"labels": ()}, ("no", "label")),
        ({"labels": ("train",)}, ("the test split has no labels",)),
        ({"classes": 1}, ("labels of 1 class", "at least 2")),
    ],
)
def test_data_that_cannot_be_used_is_a_sentence_before_training(
    how: dict[str, Any], words: tuple[str, ...], finished: Path, tmp_path: Path
) -> None:
    root = npz(tmp_path / "other.npz", **how)
    data = ("--data.dataset", "npz", "--data.root", root, "--label_fraction", "0.5")
    sentence = refused(finished, *data)
    assert all(word in sentence for word in words), sentence


def test_validation_labels_are_only_needed_to_score_them(finished: Path, tmp_path: Path) -> None:
    root = npz(tmp_path / "other.npz", val=True, labels=("train", "test"))
    data = ("--data.dataset", "npz", "--data.root", root, "--label_fraction", "0.5")
    assert "the val split has no labels" in refused(finished, *data, "--split", "val")
    finetune("--run_dir", finished, *data)
    table = rows(home(finished, "npz") / "finetune-0.5-seed0")
    assert not any("finetune/val_top1" in row for row in table)


def broken(path: Path, how: str) -> None:
    loaded = torch.load(path, weights_only=True)
    state = loaded["state_dict"]
    if how == "NaN":
        state["encoder.conv1.weight"][0] = torch.nan
    elif how == "newer":
        loaded[KEY]["format"] = 99
    elif how == "other architecture":
        loaded[KEY]["encoder"] |= {"name": "resnet18", "args": {}}
    elif how == "other program":
        loaded = {"state_dict": {}}
    torch.save(loaded, path)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:9000])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("NaN", "has weights that are not finite"),
        ("newer", "has format 99"),
        ("other architecture", "holds another architecture"),
        ("other program", "is not a checkpoint of simclr_pl"),
        ("truncated", "cannot be read"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_a_sentence(
    how: str, words: str, finished: Path
) -> None:
    broken(weights(finished), how)
    assert words in refused(finished)


def test_too_few_labels_for_the_devices_is_a_sentence(finished: Path) -> None:
    command = ("finetune", *FAST, "--run_dir", finished, "--batch_size", 3, "--epochs", 1)
    for outcome in ranks(2, as_rank, *command, "--trainer.devices", 2):
        assert outcome.code == 2
        assert "a batch has 2 of 130 labelled images, too few for 2 devices" in outcome.err
    assert not (finished / "finetune").exists()


def test_a_rate_that_is_too_large_ends_in_a_sentence_and_saves_no_nan(finished: Path) -> None:
    args = ("--run_dir", finished, "--learning_rate", "1e30")
    sentence = run("finetune", *FAST, *args).sentence
    assert "no longer a number" in sentence
    assert "lower --learning_rate" in sentence
    assert not (finished / "results").exists()
    assert not weights(home(finished)).exists()


def test_a_failure_with_weights_and_biases_leaves_nothing_behind_either(finished: Path) -> None:
    before = files(finished)
    args = ("--run_dir", finished, "--wandb", "offline", "--from_projector_layer", 3)
    late = ("--run_dir", finished, "--wandb", "offline", "--trainer.strategy", "nope")
    for command in (args, late):
        try:
            assert run("finetune", *FAST, *command).sentence
            assert wandb.run is None
        finally:
            wandb.teardown()
        assert files(finished) == before
        assert not (finished / "finetune").exists()
