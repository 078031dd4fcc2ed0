"""What a run keeps of its data: no label changes sides, and a resume says what has changed."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import QUICK, Outcome, run
from noise import write_image
from run_files import checkpoint, files

from simclr_pl import ContrastiveDataModule, UserError
from simclr_pl.commandline.target import DataChoice, find_pretrained
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import Splits
from simclr_pl.images import datasets
from simclr_pl.images.datasets import load
from simclr_pl.images.fingerprint import Contents, changes, check_same_kind
from simclr_pl.images.heldout import OLDER, HeldOut
from simclr_pl.run.directory import RunDirectory
from simclr_pl.run.seen import MARK, kept_by, read_seen, save_seen, sees_own_data


def train(home: Path, *more: object) -> Outcome:
    """Trains on home/images into home/run."""
    data = ("--data.dataset", "folder", "--data.root", home / "images", "--data.num_workers", "0")
    return run("fit", *QUICK, *data, "--run_dir", home / "run", *more)


def resume(home: Path) -> Outcome:
    return train(home, "--resume", "--trainer.max_epochs", "3")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 100 images that tell nothing of them, and two epochs of training."""
    home = tmp_path_factory.mktemp("begun")
    for number in range(300):
        write_image(home / "images" / f"class{number // 100}" / f"{number % 100:03d}.png", number)
    assert train(home).code == 0
    return home


@pytest.fixture
def home(begun: Path, tmp_path: Path) -> Path:
    """A copy of images and run, to be mistreated."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(begun), str(tmp_path)))
    return tmp_path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Splits]]:
    """What data modules read, in their order."""
    found: list[Splits] = []

    def reading(*args: Any, **options: Any) -> Splits:
        found.append(load(*args, **options))
        return found[-1]

    monkeypatch.setattr(datasets, "load", reading)
    return found


def names(splits: Splits, *, labelled: bool) -> set[bytes]:
    """Of train's images those with a label, or those without."""
    labels = splits.train.labels.tolist()
    pairs = zip(splits.train.names or (), labels, strict=True)
    return {name for name, label in pairs if (label != UNLABELLED) == labelled}


def of_val(home: Path) -> set[bytes]:
    """Names of the validation images that the run began with."""
    return set(load("folder", home / "images").val.names or ())


def remove(home: Path, *, val: bool) -> str:
    """Removes an image of the first class, one of validation's or not, and returns its name."""
    held = of_val(home)
    name = next(n for i in range(100) if ((n := f"class0/{i:03d}.png").encode() in held) == val)
    (home / "images" / name).unlink()
    return name


# A resume -----------------------------------------------------------------------------------------


def test_a_resumed_run_trains_on_no_label_that_was_held_out(home: Path, read: list[Splits]) -> None:
    held = of_val(home)
    remove(home, val=False)
    for number in range(5):
        write_image(home / "images" / "class2" / f"new{number}.png", 1000 + number)
    outcome = resume(home)
    assert outcome.code == 0
    assert (
        f"The data have changed since {home}/run was last trained: train has 304 images (300 "
        "before): class0 99 (100), class2 105 (100). The validation images stay the same, and new "
        "images are trained on\n"
    ) in outcome.out
    assert set(read[-1].val.names or ()) == held == names(read[-1], labelled=False)
    assert len(names(read[-1], labelled=True)) == 274
    assert checkpoint(home / "run")["global_step"] == 6
    assert "have changed" not in train(home, "--resume", "--trainer.max_epochs", "4").out


def test_a_resume_on_the_same_data_says_nothing_and_keeps_the_file(home: Path) -> None:
    shutil.move(home / "images", home / "elsewhere")
    path = home / "run" / "checkpoints" / "data.npz"
    before = path.read_bytes()
    outcome = resume(home)
    assert outcome.code != 0  # no such folder
    (home / "images").symlink_to(home / "elsewhere")
    outcome = resume(home)
    assert (outcome.code, "changed" in outcome.out, path.read_bytes()) == (0, False, before)


def test_what_changes_a_run_is_refused_by_its_name(home: Path) -> None:
    before = files(home / "run")
    images = home / "images"
    name = remove(home, val=True)
    said = resume(home).sentence
    assert f"1 of {home}/run's validation images are gone, or have other names ({name}): " in said
    assert "or start a new run in another --run_dir" in said
    write_image(images / name, 7)
    assert (
        f"validation images ({name}), or their labels, have changed since" in resume(home).sentence
    )
    (images / "class1").rename(images / "owl")
    assert "the classes have changed since the run was last trained (class1 gone and owl new)" in (
        resume(home).sentence
    )
    (images / "owl").rename(images / "class1")
    shutil.copytree(images / "class1", images / "owl")
    assert "was last trained (owl new): put it back as it was" in resume(home).sentence
    assert files(home / "run") == before


def test_channels_labels_and_other_images_are_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (80, 8, 8, 3), dtype=np.uint8), np.arange(80) % 2

    def look(images: Any, labels: Any) -> Contents:
        np.savez(tmp_path / "set.npz", train_images=images, train_labels=labels, test_images=images)
        splits = load("npz", tmp_path / "set.npz")
        return Contents.of(splits, HeldOut.of(splits, 0))

    before = look(images, labels)
    (held,) = np.where(load("npz", tmp_path / "set.npz").train.labels.numpy() == UNLABELLED)
    first = next(place for place in range(80) if place not in held)
    assert changes(before, look(images, labels), own=False) == []
    with pytest.raises(UserError, match="images have 1 channels, and had 3 when the run was last"):
        check_same_kind(before, look(images[..., 0], labels))
    with pytest.raises(UserError, match=r"\(their order is another\): put it back as it was, or"):
        check_same_kind(before, before._replace(classes=before.classes[::-1]))
    other = images.copy()
    other[first] = 0
    assert first in (0, 1)  # of the hundred at most that are looked at
    assert changes(before, look(other, labels), own=False) == [
        "images of train or test are not the same as before"
    ]
    other[held[0]] = 0
    with pytest.raises(UserError, match=rf"validation images \({held[0]}\), or their labels, have"):
        changes(before, look(other, labels), own=False)
    moved = before.counts | {"val": [5, 3, 0]}
    with pytest.raises(UserError, match="validation images, or their labels, have changed since"):
        changes(before, before._replace(counts=moved), own=False)
    assert changes(before, before._replace(counts=moved), own=True) == [
        "val has 8 images (8 before): 0 5 (4), 1 3 (4)"
    ]
    renamed = before._replace(names={"train": "1"})
    assert changes(renamed, renamed._replace(names={"train": "2"}), own=False) == [
        "train has as many images as before, but other files"
    ]
    gone = {k: v for k, v in before.counts.items() if k != "test"}
    assert changes(before, before._replace(counts=gone), own=False) == [
        "test has 0 images (80 before)"
    ]


# Evaluations --------------------------------------------------------------------------------------

GRID = ("--epochs", "1", "--learning_rates", "1", "--weight_decays", "0")
COMMANDS: dict[str, tuple[str, ...]] = {
    "linear": ("--split", "val", *GRID, "--wandb", "off"),
    "knn": ("--split", "val", "--wandb", "off"),
    "compare": ("--labels_per_class", "2", "--draws", "2", "--wandb", "off"),
    "finetune": (
        *("--label_fraction", "0.1", "--epochs", "1", "--split", "val", "--wandb", "off"),
        *("--trainer.accelerator", "cpu"),
    ),
    "report": (),
    "validate": ("--wandb", "off"),
    "predict": (),
}


@pytest.fixture(scope="module")
def changed(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose images have got more: by the rule alone four others would be validation's."""
    home = tmp_path_factory.mktemp("changed")
    shutil.copytree(begun, home, dirs_exist_ok=True)
    config = home / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(begun), str(home)))
    for number in range(40):
        write_image(home / "images" / "class1" / f"new{number}.png", 1000 + number)
    return home


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.long
def test_what_evaluates_a_run_has_its_validation_images(
    command: str, begun: Path, changed: Path, read: list[Splits]
) -> None:
    outcome = run(command, "--run_dir", changed / "run", *COMMANDS[command])
    assert outcome.code == 0, outcome
    held = of_val(begun)
    assert read
    for splits in read:
        assert set(splits.val.names or ()) == held == names(splits, labelled=False)
    assert of_val(changed) != held


def test_other_data_are_split_by_the_rule(begun: Path, changed: Path, tmp_path: Path) -> None:
    run_dir = str(begun / "run")
    own = find_pretrained(None, run_dir, None, DataChoice())
    assert own.held_out is not None
    assert own.folder("results") == begun / "run" / "results"
    other = find_pretrained(None, run_dir, None, DataChoice(root=str(changed / "images")))
    assert other.held_out is None
    assert set(other.data().whole.val.names or ()) == of_val(changed)
    assert other.folder("results") == begun / "run" / "results" / "images"
    digits = find_pretrained(None, run_dir, None, DataChoice(dataset="digits"))
    assert digits.held_out is None
    assert digits.folder("results") == begun / "run" / "results" / "digits"
    link = tmp_path / "link"
    link.symlink_to(begun / "images")
    assert sees_own_data(RunDirectory(begun / "run"), "folder", str(link))


def test_an_evaluation_says_how_many_validation_images_are_left(home: Path) -> None:
    remove(home, val=True)
    for command in ("knn", "validate"):
        outcome = run(command, "--run_dir", home / "run", *COMMANDS[command])
        assert outcome.code == 0
        assert (
            "1 of the run's validation images are gone, or have other names: 29 are left\n"
        ) in outcome.out


def test_a_fine_tuning_keeps_its_own(home: Path, read: list[Splits]) -> None:
    more = ("--run_dir", home / "run", *COMMANDS["finetune"])
    assert run("finetune", *more).code == 0
    tuned = home / "run" / "finetune" / "finetune-0.1-seed0"
    seen = read_seen(RunDirectory(tuned).seen)
    assert seen == read_seen(RunDirectory(home / "run").seen)._replace(held_out=seen.held_out)
    assert seen.held_out.missing(read[-1]).tolist() == []
    held = of_val(home)
    for number in range(40):
        write_image(home / "images" / "class1" / f"new{number}.png", 1000 + number)
    (home / "run" / "checkpoints" / "data.npz").unlink()
    outcome = run("finetune", *more, "--resume")
    assert "labels was 27" in outcome.sentence  # more images, and a tenth of them is more
    assert set(read[-1].val.names or ()) == held


# Files that are lost, broken or old ---------------------------------------------------------------


def test_a_list_that_is_lost_is_drawn_again_where_that_gives_the_same(home: Path) -> None:
    path = home / "run" / "checkpoints" / "data.npz"
    before = path.read_bytes()
    path.unlink()
    assert kept_by(RunDirectory(home / "run"), home / "run" / "checkpoints" / "last.ckpt") is None
    outcome = resume(home)
    assert (outcome.code, path.read_bytes()) == (0, before)
    path.unlink()
    for number in range(40):
        write_image(home / "images" / "class1" / f"new{number}.png", 1000 + number)
    said = train(home, "--resume", "--trainer.max_epochs", "4").sentence
    assert f"{path} is missing, and the validation split that these data have now is not" in said


def test_a_run_of_an_older_version_keeps_its_split(home: Path, read: list[Splits]) -> None:
    last = home / "run" / "checkpoints" / "last.ckpt"
    content = checkpoint(home / "run")
    del content[MARK]
    torch.save(content, last)
    (home / "run" / "checkpoints" / "data.npz").unlink()
    assert kept_by(RunDirectory(home / "run"), last) is OLDER
    by_place = set(load("folder", home / "images", kept=OLDER).val.names or ())
    assert by_place != of_val(home)
    outcome = run("knn", "--run_dir", home / "run", *COMMANDS["knn"])
    assert outcome.code == 0
    assert set(read[-1].val.names or ()) == by_place
    outcome = resume(home)
    assert outcome.code == 0
    assert "run was begun by an older version, which kept no list of validation images: they" in (
        outcome.out
    )
    assert set(read[-1].val.names or ()) == by_place
    # From now on it has one.
    write_image(home / "images" / "class0" / "new.png", 1000)
    assert train(home, "--resume", "--trainer.max_epochs", "4").code == 0
    assert set(read[-1].val.names or ()) == by_place


def test_a_broken_list_is_a_sentence(home: Path) -> None:
    path = home / "run" / "checkpoints" / "data.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert f"{path} is not a readable .npz file: remove it, and the val" in resume(home).sentence
    np.savez(path, key=np.array("name"))
    assert f"{path} does not say what a run has seen: remove it" in resume(home).sentence
    np.savez(path, format=np.array(2))
    assert f"{path} has format 2, and this version of simclr_pl reads 1" in resume(home).sentence


def test_a_list_is_written_whole_or_not_at_all(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = read_seen(begun / "run" / "checkpoints" / "data.npz")
    save_seen(tmp_path / "new" / "data.npz", seen)
    assert files(tmp_path / "new") == {
        "data.npz": (begun / "run" / "checkpoints" / "data.npz").read_bytes()
    }

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(UserError, match=r"data\.npz cannot be written"):
        save_seen(tmp_path / "new" / "data.npz", seen)
    assert list(files(tmp_path / "new")) == ["data.npz"]


def test_a_data_module_alone_needs_no_run() -> None:
    data = ContrastiveDataModule()
    data.setup()
    assert data.kept is None
    assert data.whole.held is not None
