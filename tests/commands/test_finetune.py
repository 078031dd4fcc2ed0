"""finetune as a command: what it does, its files, other data and W&B."""

import json
import multiprocessing
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml
from commands import fit, run
from finetuning import FAST, STEPS, assert_same_bits, curve, finetune, home, npz, weights, without
from noise import write_dark_and_bright
from offline import history, recipe, records
from run_files import checkpoint, files, result, rows, same_weights

from simclr_pl import ContrastiveDataModule, load_encoder
from simclr_pl.core.model.checkpoint import KEY
from simclr_pl.protocols.backbone import load_backbone
from simclr_pl.protocols.labelled_datamodule import LabelledDataModule
from simclr_pl.run.results import sha256

pytestmark = pytest.mark.long

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
    assert config["model"]["checkpoint"] == str(weights(finished))
    assert config["data"]["label_fraction"] == 0.1
    assert (config["model"]["head_only"], config["model"]["weight_decay"]) == (True, 1e-4)
    assert config["model"]["learning_rate"] == 0.05
    digest = sha256(weights(finished))
    derived = {"checkpoint_sha256": digest, "labels": 130, "classes": 10}
    assert config["derived"] == derived
    assert config["trainer"]["max_epochs"] == 4
    assert config["trainer"]["precision"] == "32-true"
    about = checkpoint(finished)[KEY]
    assert config["data"]["dataset"] == "digits"
    assert config["data"]["mean"] == list(about["mean"])
    assert config["data"]["image_size"] == about["image_size"]
    assert config["data"]["batch_size"] == 50
    assert not {"run_dir", "resume", "seeds", "split", "out"} & config.keys()
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
        says = "only pretrains" if command[0] == "fit" else "reads pretraining runs alone"
        assert f"is the config of a fine-tuning run, but `{command[0]}` {says}: use" in sentence
        assert "`finetune --resume` to continue it, or `linear` or `knn` to score its" in sentence


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
    write_dark_and_bright(tmp_path / "images")
    data = ("--data.dataset", "folder", "--data.root", tmp_path / "images")
    fit(tmp_path / "run", *data, "--data.batch_size", 8, "--data.num_workers", 1)
    more = ("--label_fraction", "0.5", "--split", "val", "--batch_size", "8", "--epochs", "2")
    finetune("--run_dir", tmp_path / "run", *more, "--seeds", 0, 1)
    assert len(list((tmp_path / "run" / "results").iterdir())) == 2
    assert not multiprocessing.active_children()
