"""`hub:NAME` with and without internet, and runs on data of `hub:PATH`."""

import shutil
import sys
import time
from pathlib import Path

import pytest
from arrays import sentence
from commands import QUICK, called, environment, finish, fit, start
from datamodules import ready
from hub_files import ROOT, labelled, named, png, read, saved, table
from hub_server import COMMIT, FILE, NAME, a_hub
from noise import pixels, write_npz
from run_files import checkpoint, rows
from stopping import begin, check_same_run, differences, kill_when

from simclr_pl.core.data.sources import ArrayImages
from simclr_pl.core.errors import UserError
from simclr_pl.images.datasets import prepare

pytestmark = pytest.mark.usefixtures("own_cache")


# The hub itself -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_internet")
def test_without_internet_a_sentence_comes_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        prepare("hub:nobody/nothing", ROOT)
    assert time.monotonic() - begun < 5
    said = sentence(caught)
    assert "hub:nobody/nothing is not in the cache of `datasets`, and the Hugging Face hub" in said
    assert "load_dataset('nobody/nothing').save_to_disk('FOLDER')" in said


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    address = "https://hub.invalid"  # a name that no server has, with internet or without
    args = ("--data.dataset", "hub:nobody/nothing", "--run_dir", tmp_path / "run")
    process = start(
        "fit", *QUICK, *args, fresh=True, env=environment(HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    )
    begun = time.monotonic()
    outcome = finish(process)
    assert time.monotonic() - begun < 60
    assert "cannot be reached" in outcome.sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_internet")
def test_what_was_downloaded_before_is_read_without_internet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled().to_parquet(tmp_path / "train.parquet")
    read(f"hub:{tmp_path / 'train.parquet'}")
    cache, commit = tmp_path / "cache", "c0ffee" + "0" * 34
    (made,) = {path.parent for path in cache.glob("parquet/*/*/*/*.arrow")}
    place = cache / "nobody___nothing" / "default" / "0.0.0" / commit
    shutil.copytree(made, place)
    (place / "parquet-train.arrow").rename(place / "nothing-train.arrow")
    info = place / "dataset_info.json"
    config = made.parent.parent.name
    info.write_text(info.read_text().replace(f'"{config}"', '"default"'))
    assert len(read("hub:nobody/nothing").train) == 40
    assert f"hub:nobody/nothing: commit {commit[:12]}, which was" in capsys.readouterr().out
    assert len(read(named("hub:nobody/nothing", revision="c0ffee")).train) == 40
    with pytest.raises(UserError, match="cannot be reached"):
        read(named("hub:nobody/nothing", revision="v2"))


SCRIPT = """
import sys
from simclr_pl.core.errors import UserError
from simclr_pl.images.datasets import load, prepare
from simclr_pl.images.fingerprint import fingerprint
try:
    for name in sys.argv[1:]:
        prepare(name, "data")
        print(fingerprint(load(name, "data")))
except UserError as error:
    print(error)
"""


def test_a_data_set_is_downloaded_once_and_then_read_without_the_hub(tmp_path: Path) -> None:
    labelled().to_parquet(tmp_path / "train.parquet")
    here = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    names, said = [f"hub:{NAME}"] * 2, list[list[str]]()
    with a_hub((tmp_path / "train.parquet").read_bytes()) as (address, asked):
        env = environment(HF_ENDPOINT=address, **here)
        done = called(sys.executable, "-c", SCRIPT, *names, "hub:some/one", env=env)
        said.append(done.stdout.splitlines())
        assert done.stderr == ""
        fetched = [line for line in asked if line.startswith("GET") and line.endswith(FILE)]
        assert len(fetched) == 1
        assert "Hugging Face hub has no data set some/one that everybody may read" in done.stdout
    done = called(sys.executable, "-c", SCRIPT, *names, env=env)
    said.append(done.stdout.splitlines())
    assert f"hub:{NAME}: commit {COMMIT[:12]}, which was downloaded before" in said[1]
    prints = [line for lines in said for line in lines if len(line) == 64]
    assert (len(prints), len(set(prints))) == (4, 1)


# Runs ---------------------------------------------------------------------------------------------


def test_the_same_pixels_as_npz_and_from_a_hub_give_the_same_curve(tmp_path: Path) -> None:
    file = write_npz(tmp_path / "set.npz", 8, 8, train=160)
    images = [png(image) for image in pixels(160, 8, 8)]
    given = saved(tmp_path / "set", table(images, [i % 4 for i in range(160)]))
    short = ("--data.batch_size", "64")
    fit(tmp_path / "one", *short, "--data.dataset", "npz", "--data.root", file)
    fit(tmp_path / "two", *short, "--data.dataset", given)
    assert rows(tmp_path / "one") == rows(tmp_path / "two")
    one, two = (checkpoint(tmp_path / name)["state_dict"] for name in ("one", "two"))
    assert differences(one, two) == []
    assert isinstance(ready(given).whole.train, ArrayImages)


def test_a_run_on_a_hubs_folder_that_is_killed_ends_as_one_left_alone(tmp_path: Path) -> None:
    images = [png(pixels(12 + i % 3, 12, 3, seed=i)) for i in range(160)]
    given = saved(tmp_path / "set", table(images, [i % 4 for i in range(160)]))
    recipe = (
        *("--data.dataset", given, "--data.batch_size", "32", "--data.num_workers", "1"),
        *("--trainer.limit_train_batches", "4", "--trainer.max_epochs", "4"),
        *("--checkpoint.every_n_steps", "3"),
    )
    fit(tmp_path / "whole", *recipe)
    run = tmp_path / "run"
    process = begin(run, *QUICK, *recipe, "--resume")
    kill_when(process, lambda: len(rows(run)) >= 6)
    assert 3 <= checkpoint(run)["global_step"] < 16
    assert fit(run, *recipe, "--resume").err == ""
    check_same_run(run, tmp_path / "whole")
