"""linear and knn as commands: real checkpoints, real files, a sentence for what is wrong."""

import multiprocessing
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from commands import Outcome, fit, run
from finetuning import npz, weights
from noise import write_dark_and_bright
from run_files import checkpoint, result

from simclr_pl import ContrastiveDataModule, load_encoder
from simclr_pl.protocols.features import encode, encode_crops
from simclr_pl.protocols.linear import Settings, fit_linear
from simclr_pl.protocols.scoring import labelled
from simclr_pl.run.results import sha256

FAST = ("--epochs", "2", "--learning_rates", "0.1", "1.0", "--weight_decays", "0", "0.01")

COMMANDS = {"linear": FAST, "knn": ()}


def worked(*args: object) -> str:
    outcome = run(*args)
    assert outcome.code == 0, outcome
    assert not outcome.err
    return outcome.out


# What they do -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_a_result_says_how_it_came_about(command: str, finished: Path) -> None:
    before = weights(finished).read_bytes()
    printed = worked(command, "--run_dir", finished, *COMMANDS[command])
    found = result(finished / "results" / f"{command}-test-seed0.json")
    assert (found["protocol"], found["split"], found["seed"]) == (command, "test", 0)
    assert (found["epoch"], found["dataset"], found["pretraining_seed"]) == (2, "digits", 0)
    assert found["checkpoint_sha256"] == sha256(weights(finished))
    assert found["versions"]["torch"]
    assert 0.3 < found["top1"] <= found["top5"] <= 1
    assert f"top1 {found['top1']:.4f}" in printed
    assert "test split of digits" in printed
    assert weights(finished).read_bytes() == before
    chosen = ("learning_rate", "weight_decay", "solver") if command == "linear" else ("k",)
    assert all(name in found for name in chosen)


@pytest.mark.long
def test_the_number_is_the_protocol_s_on_features_of_the_loaded_encoder(finished: Path) -> None:
    worked("linear", "--checkpoint", weights(finished), "--split", "val", "--seeds", 3)
    data = ContrastiveDataModule("digits")
    data.setup()
    encoder = load_encoder(weights(finished))
    train, val = (labelled(encode(encoder, data, s), s) for s in ("train", "val"))
    expected = fit_linear(lambda _: train.features, train.labels, 10, Settings(seed=3)).score(val)
    found = result(finished / "results" / "linear-val-seed3.json")
    assert found["top1"] == pytest.approx(expected.top1, abs=0.01)
    assert found["learning_rate"] == expected.chosen["learning_rate"]


@pytest.mark.parametrize("command", COMMANDS)
def test_seeds_are_scored_one_by_one_with_mean_and_standard_deviation(
    command: str, finished: Path
) -> None:
    printed = worked(command, "--run_dir", finished, "--seeds", 0, 1, 2, *COMMANDS[command])
    files = sorted((finished / "results").glob("*.json"))
    assert [path.name for path in files] == [f"{command}-test-seed{s}.json" for s in (0, 1, 2)]
    top1 = [result(path)["top1"] for path in files]
    mean, spread = statistics.mean(top1), statistics.stdev(top1)
    assert f"top1 {mean:.4f} ± {spread:.4f}" in printed


def test_without_seeds_the_run_s_own_is_used(tmp_path: Path) -> None:
    fit(tmp_path / "run", "--seed_everything", 5)
    worked("knn", "--run_dir", tmp_path / "run")
    assert (tmp_path / "run" / "results" / "knn-test-seed5.json").is_file()


@pytest.mark.long
def test_solvers_and_augmentation_are_protocols_of_their_own(
    finished: Path, tmp_path: Path
) -> None:
    worked("linear", "--run_dir", finished, "--solver", "lbfgs")
    overlay = tmp_path / "gentle.yaml"
    overlay.write_text("data: {scale: [0.9, 1.0], flip: 0.0}\n")
    config = ("--config", finished / "config.yaml", overlay)
    worked("linear", "--run_dir", finished, *config, "--augment", "--epochs", "20", *FAST[2:])
    lbfgs = result(finished / "results" / "linear-lbfgs-test-seed0.json")
    assert lbfgs["solver"] == "lbfgs"
    assert lbfgs["inverse_l2_strength"] > 0
    augmented = result(finished / "results" / "linear-augmented-test-seed0.json")
    assert augmented["protocol"] == "linear-augmented"
    assert augmented["top1"] > 0.3


def test_crops_are_fresh_in_each_epoch_and_the_same_for_the_same() -> None:
    data = ContrastiveDataModule("digits", jitter=0, grayscale=0, blur=0, batch_size=64)
    data.setup()
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5), torch.nn.Dropout())
    rows = torch.arange(3, 203)
    first = encode_crops(encoder, data, rows, 0)
    assert encoder.training
    assert first.shape == (200, 5)
    assert encode_crops(encoder, data, rows, 0).equal(first)
    assert not encode_crops(encoder, data, rows, 1).isclose(first).all(1).any()
    torch.testing.assert_close(encode_crops(encoder, data, rows[50:60], 0), first[50:60])


def test_a_checkpoint_on_its_own_needs_data_and_keeps_its_results_beside_it(
    finished: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone" / "deep" / "model.ckpt"
    alone.parent.mkdir(parents=True)
    shutil.copy(weights(finished), alone)
    sentence = run("knn", "--checkpoint", alone).sentence
    assert "no config.yaml" in sentence
    assert "--data.dataset" in sentence
    worked("knn", "--checkpoint", alone, "--data.dataset", "digits")
    named = result(alone.parent / "results" / "knn-test-seed0.json")
    worked("knn", "--checkpoint", alone, "--config", finished / "config.yaml")
    assert result(alone.parent / "results" / "knn-test-seed0.json") == named


# Transfer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_another_data_set_is_seen_as_the_encoder_was_trained(
    command: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = checkpoint(finished)["simclr_pl"]
    made: list[ContrastiveDataModule] = []
    setup = ContrastiveDataModule.setup

    def spy(self: ContrastiveDataModule, stage: str | None = None) -> None:
        setup(self, stage)
        made.append(self)

    monkeypatch.setattr(ContrastiveDataModule, "setup", spy)
    other = npz(tmp_path / "other.npz")
    data = ("--data.dataset", "npz", "--data.root", other)
    printed = worked(command, "--run_dir", finished, *data, *COMMANDS[command])
    assert "test split of npz" in printed
    # Beside the run's own numbers, which it doesn't overwrite.
    found = result(finished / "results" / "npz" / f"{command}-test-seed0.json")
    assert found["dataset"] == "npz"
    assert found["top1"] > 0.25
    assert (made[-1].mean, made[-1].std) == (tuple(about["mean"]), tuple(about["std"]))
    assert made[-1].image_size == about["image_size"]


@pytest.mark.processes
def test_image_files_are_decoded_by_workers_that_end(tmp_path: Path) -> None:
    write_dark_and_bright(tmp_path / "images")
    data = ("--data.dataset", "folder", "--data.root", tmp_path / "images")
    fit(tmp_path / "run", *data, "--data.batch_size", 8, "--data.num_workers", 1)
    for command in (["knn"], ["linear", *FAST], ["linear", *FAST, "--augment"]):
        worked(*command, "--run_dir", tmp_path / "run", "--split", "val", "--seeds", 0, 1)
    assert len(list((tmp_path / "run" / "results").iterdir())) == 6
    assert not multiprocessing.active_children()


# What goes wrong ----------------------------------------------------------------------------------


def refused(finished: Path, *args: object, command: str = "linear") -> str:
    outcome: Outcome = run(command, "--run_dir", finished, *args)
    assert not (finished / "results").exists()
    return outcome.sentence


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--seeds",), ("seeds is empty", "--seeds 0 1 2")),
        (("--seeds", "one"), ("seeds", "one")),
        (("--split", "tset"), ("split", "tset")),
        (("--splt", "val"), ("unknown key 'splt'", "did you mean 'split'")),
        (("--epochs", "0"), ("epochs is 0", "at least 1")),
        (("--learning_rates", "0.1", "0"), ("learning_rates is [0.1, 0.0]", "above 0")),
        (("--learning_rates",), ("learning_rates is []",)),
        (("--learning_rates", ".nan"), ("learning_rates is [nan]",)),
        (("--weight_decays", "-1"), ("weight_decays is [-1.0]", "0 or more")),
        (("--solver", "lbfgs", "--augment"), ("lbfgs", "--augment")),
        (("--checkpoint", "x.ckpt"), ("--checkpoint", "--run_dir", "one of them")),
        (("--config", "nowhere.yaml"), ("nowhere.yaml",)),
        (("--data.dataset", "digit"), ("data set 'digit'", "did you mean digits")),
        (("--data.datset", "digits"), ("data.datset", "did you mean 'data.dataset'")),
    ],
)
def test_a_value_that_cannot_be_is_a_sentence(
    args: tuple[str, ...], words: tuple[str, ...], finished: Path
) -> None:
    sentence = refused(finished, *args)
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(("option", "word"), [("--k", "k is [0]"), ("--temperature", "[0.0]")])
def test_a_value_of_knn_that_cannot_be_is_a_sentence(
    option: str, word: str, finished: Path
) -> None:
    assert word in refused(finished, option, "0", command="knn")


@pytest.mark.parametrize("command", COMMANDS)
def test_neither_run_nor_checkpoint_is_a_sentence(command: str) -> None:
    assert "--checkpoint FILE or --run_dir RUN" in run(command).sentence
    assert "nowhere" in run(command, "--run_dir", "nowhere").sentence
    assert "nowhere.ckpt" in run(command, "--checkpoint", "nowhere.ckpt").sentence


@pytest.mark.parametrize("command", COMMANDS)
def test_data_that_cannot_be_scored_is_a_sentence(
    command: str, finished: Path, tmp_path: Path
) -> None:
    def said(path: Path) -> str:
        return refused(finished, "--data.dataset", "npz", "--data.root", path, command=command)

    colour = said(npz(tmp_path / "colour.npz", channels=3))
    assert "3 channels" in colour
    assert "trained on 1" in colour
    assert "no test split" in said(npz(tmp_path / "untested.npz", test=False))
    assert "no labels" in said(npz(tmp_path / "unlabelled.npz", labels=()))


def broken(path: Path, how: str) -> None:
    loaded = torch.load(path, weights_only=True)
    if how == "NaN":
        for value in loaded["state_dict"].values():
            if value.is_floating_point():
                value.fill_(torch.nan)
    elif how == "newer":
        loaded["simclr_pl"]["format"] = 99
    elif how == "other architecture":
        loaded["simclr_pl"]["encoder"]["name"] = "resnet18"
        loaded["simclr_pl"]["encoder"]["args"] = {}
    else:
        loaded = {"state_dict": {}}
    torch.save(loaded, path)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("NaN", "has weights that are not finite"),
        ("newer", "has format 99"),
        ("other architecture", "holds another architecture"),
        ("other program", "is not a checkpoint of simclr_pl"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_a_sentence(
    command: str, how: str, words: str, finished: Path
) -> None:
    broken(weights(finished), how)
    assert words in refused(finished, command=command)
