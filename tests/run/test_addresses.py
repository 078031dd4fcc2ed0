"""Addresses, as `s3://bucket/x`, are refused wherever a path is given, and nothing is made."""

from pathlib import Path

import pytest
from commands import QUICK, run

from simclr_pl import ContrastiveDataModule, UserError, load_encoder
from simclr_pl.core.paths import expanded

ADDRESS = "s3://bucket/x"

SAID = f"{ADDRESS} is on no local disk, and only local disks serve: copy it first"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which nothing may appear."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ("fit", *QUICK, "--data.dataset", "folder", "--data.root", ADDRESS),
        ("fit", *QUICK, f"--run_dir={ADDRESS}"),
        ("fit", *QUICK, "--run_dir", ADDRESS, "--resume"),
        ("fit", *QUICK, "--init_from", ADDRESS),
        ("fit", "--config", ADDRESS),
        ("fit", f"--config={ADDRESS}"),
        ("validate", "--run_dir", ADDRESS),
        ("validate", "--ckpt_path", ADDRESS, "--wandb", "off"),
        ("bench", "--config", ADDRESS),
        ("knn", "--run_dir", ADDRESS),
        ("linear", "--checkpoint", ADDRESS),
        ("linear", "--checkpoint", ADDRESS, "--config", ADDRESS),
        ("finetune", "--label_fraction=1", "--checkpoint", ADDRESS),
        ("finetune", "--label_fraction=1", "--run_dir", ADDRESS),
        ("finetune", "--config", ADDRESS),
        ("views", "--run_dir", ADDRESS),
        ("views", "--config", ADDRESS),
        ("views", "--config", "given.yaml", "--out", ADDRESS),
        ("report", ADDRESS),
        ("pack", ADDRESS, "packed"),
        ("pack", ADDRESS, "--check"),
        ("pack", "images", ADDRESS),
        ("sweep", "--config", ADDRESS),
    ],
    ids=" ".join,
)
def test_commands_refuse_addresses_and_make_nothing(here: Path, command: tuple[str, ...]) -> None:
    outcome = run(*command)
    assert (outcome.code, outcome.err) == (2, f"error: {SAID}\n"), outcome
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("option", ["checkpoint", "config"])
def test_of_a_run_too(here: Path, source: Path, option: str) -> None:
    given = {"checkpoint": source / "checkpoints" / "last.ckpt", "config": source / "config.yaml"}
    named = [f"--{name}={ADDRESS if name == option else path}" for name, path in given.items()]
    for command in (("knn",), ("finetune", "--label_fraction=1")):
        outcome = run(*command, *named, "--wandb=off")
        assert (outcome.code, outcome.err) == (2, f"error: {SAID}\n"), outcome
    outcome = run("knn", f"--checkpoint={given['checkpoint']}", f"--data.root={ADDRESS}")
    assert (outcome.code, outcome.err) == (2, f"error: {SAID}\n"), outcome
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("key", ["data: {root: %s}", "run_dir: %s", "init_from: %s"])
def test_recipes_refuse_addresses(here: Path, key: str) -> None:
    (here / "mine.yaml").write_text(key % ADDRESS)
    outcome = run("fit", *QUICK, "--config", "mine.yaml")
    assert (outcome.code, outcome.err) == (2, f"error: {SAID}\n"), outcome
    assert [path.name for path in here.iterdir()] == ["mine.yaml"]


def test_python_refuses_addresses() -> None:
    with pytest.raises(UserError, match="only local disks serve"):
        ContrastiveDataModule("folder", root=ADDRESS)
    with pytest.raises(UserError, match="only local disks serve"):
        load_encoder(ADDRESS)


@pytest.mark.parametrize("scheme", ["gs", "http", "https", "hf", "file", "s3a"])
def test_schemes_of_any_kind(scheme: str) -> None:
    with pytest.raises(UserError, match="only local disks serve"):
        expanded(f"{scheme}://bucket/x")


@pytest.mark.parametrize(
    "name", ["C:\\x", "C:/x", "C://x", "a:b", "day 1://x", "x/s3://y", "{root: s3://y}", "://"]
)
def test_names_with_a_colon_are_no_addresses(name: str) -> None:
    assert expanded(name) == Path(name)
