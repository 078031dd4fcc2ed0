"""One example a door: trained from the command line, killed, resumed, evaluated, on two ranks."""

from pathlib import Path

import pytest
from commands import QUICK, REPOSITORY, finish, run, start
from distances import far
from run_files import checkpoint, rows, same_weights
from stopping import kill_when

from simclr_pl.pictures.curves import draw_curves
from simclr_pl.pictures.read_runs import read_runs

EXAMPLES = sorted(path.stem for path in (REPOSITORY / "examples").glob("*.yaml"))

KEPT = QUICK[: QUICK.index("--model.encoder")], QUICK[QUICK.index("--wandb") :]
"""Of the quick recipe what no example is about."""

QUICKLY = (*(word for part in KEPT for word in part), "--linear.every_n_epochs", "0")

LONGER = ("--trainer.limit_train_batches", "6", "--trainer.max_epochs", "3")


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def options(*names: str) -> tuple[object, ...]:
    """Of a run with these examples."""
    files = ["configs/digits.yaml", *(f"examples/{name}.yaml" for name in names)]
    return (*(word for file in files for word in ("--config", file)), *QUICKLY)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.long
def test_an_example_has_at_most_20_lines_and_trains(name: str, tmp_path: Path) -> None:
    for path in (REPOSITORY / "examples").glob(f"{name}.*"):
        lines = path.read_text().splitlines()
        assert len(lines) <= (20 if path.suffix == ".py" else 10), path
    done = run("fit", *options(name), "--run_dir", tmp_path / "run")
    assert (done.code, done.err) == (0, ""), done
    assert checkpoint(tmp_path / "run")["global_step"] == 4
    assert run("linear", "--run_dir", tmp_path / "run", "--split", "val", "--epochs", 1).code == 0


@pytest.mark.long
def test_nothing_of_nt_xent_is_said_of_another_objective(tmp_path: Path) -> None:
    """Its chance level and its negatives follow from the batch; others state theirs, or nothing."""
    done = run("fit", *options("decoupled"), "--run_dir", tmp_path / "run")
    assert "objective      examples.decoupled.Decoupled" in done.out
    assert "negatives" not in done.out
    figure = draw_curves(*read_runs([str(tmp_path / "run")]))
    (panel,) = (axis for axis in figure.axes if axis.get_title() == "loss")
    assert not [text for text in panel.get_legend_handles_labels()[1] if "chance" in text]


@pytest.mark.timeout(400)
def test_all_of_them_killed_and_resumed_end_in_the_same_bits(tmp_path: Path) -> None:
    one, whole = tmp_path / "one", tmp_path / "whole"
    often = ("--checkpoint.every_n_steps", "2", "--resume")
    recipe = (*options(*EXAMPLES), *LONGER, *often)
    process = start("fit", *recipe, "--run_dir", one, cwd=REPOSITORY)
    kill_when(process, lambda: len(rows(one)) in (8, 9, 10))
    assert 6 <= checkpoint(one)["global_step"] < 12
    for directory in (one, whole):
        assert run("fit", *recipe, "--run_dir", directory).err == ""
    assert same_weights(checkpoint(one), checkpoint(whole))
    optimizers = [checkpoint(directory)["optimizer_states"] for directory in (one, whole)]
    assert far(*optimizers) == 0


@pytest.mark.ddp
@pytest.mark.timeout(400)
def test_all_of_them_on_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    recipe = (*options(*EXAMPLES), "--trainer.precision", "64-true", "--data.batch_size", "127")
    assert run("fit", *recipe, "--run_dir", tmp_path / "one").code == 0
    two = ("--trainer.devices", "2", "--run_dir", tmp_path / "two")
    done = finish(start("fit", *recipe, *two, cwd=REPOSITORY), 300)
    assert (done.code, done.err) == (0, ""), done
    one, other = (checkpoint(tmp_path / name)["state_dict"] for name in ("one", "two"))
    assert far(one, other) < 1e-7  # (Adam divides by gradients that are nothing but rounding.)
