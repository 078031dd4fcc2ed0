"""`~` is the home directory wherever a path is given: to a command, in a YAML, from Python."""

from pathlib import Path

import pytest
from commands import QUICK, run
from noise import write_images, write_npz

from simclr_pl import ContrastiveDataModule, load_encoder
from simclr_pl.core.paths import expanded


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, seen from a folder in which nothing may appear."""
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def well(*args: object) -> None:
    outcome = run(*args)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    assert list(Path().iterdir()) == []


@pytest.mark.long
def test_commands_and_recipes_know_the_home_directory(home: Path) -> None:
    write_npz(home / "data.npz", 8, 8)
    (home / "mine.yaml").write_text("data: {dataset: npz, root: ~/data.npz, batch_size: 16}\n")
    (home / "where.yaml").write_text("run_dir: ~/again\ninit_from: ~/run/checkpoints/last.ckpt\n")
    quick = (*QUICK, "--config=~/mine.yaml", "--data.batch_size=16")
    well("fit", *quick, "--run_dir=~/run")
    well("fit", *quick, "--config=~/where.yaml")
    well("fit", *quick, "--run_dir=~/other", "--init_from=~/run/checkpoints/last.ckpt")
    assert {path.name for path in home.iterdir()} >= {"run", "again", "other"}
    # A recipe goes to another machine as it was written.
    assert "root: ~/data.npz" in (home / "run" / "config.yaml").read_text()
    well("validate", "--run_dir=~/run", "--wandb=off")
    well("validate", "--ckpt_path=~/run/checkpoints/last.ckpt", "--wandb=off")
    well("knn", "--checkpoint=~/run/checkpoints/last.ckpt", "--split=val", "--wandb=off")
    well("knn", "--run_dir=~/run", "--data.root=~/data.npz", "--split=val", "--wandb=off")
    well("views", "--config=~/mine.yaml", "--out=~/views.png", "--images=1", "--epochs=1")
    assert (home / "views.png").is_file()
    well("report", "~/run", "~/other", "--out=~/page")
    assert (home / "page" / "comparison.html").is_file()


def test_a_pack_goes_home(home: Path) -> None:
    write_images(home / "images", 3)
    well("pack", "~/images", "~/packed", "--num_workers=0")
    assert (home / "packed").is_dir()


def test_python_knows_the_home_directory(home: Path, source: Path) -> None:
    (home / "last.ckpt").write_bytes((source / "checkpoints" / "last.ckpt").read_bytes())
    assert load_encoder("~/last.ckpt") is not None
    assert ContrastiveDataModule("npz", root="~/data.npz").root == str(home / "data.npz")


def test_a_name_that_only_looks_like_a_user_s_stays() -> None:
    assert expanded("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")
    assert expanded("runs/~x") == Path("runs/~x")
