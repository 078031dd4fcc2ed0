"""Curves: a panel for each topic that was logged, as far as a run went."""

import csv
from pathlib import Path

import pytest
from figures import check_picture, texts

from simclr_pl.pictures.curves import draw_comparison, draw_curves
from simclr_pl.pictures.page import png
from simclr_pl.pictures.read_runs import read_runs


def test_curves_have_a_panel_for_each_topic_that_was_logged(finished: Path) -> None:
    path = finished / "metrics.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    more = ("linear/val_top1", "somebody/else")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *more])
        writer.writeheader()
        writer.writerows({**row, **dict.fromkeys(more, "0.5")} for row in rows)
    (run_,) = read_runs([str(finished)])
    figure = draw_curves(run_)
    titles = [axis.get_title() for axis in figure.axes if axis.lines]
    assert titles == [
        "loss", "contrastive top-1", "online probe, top-1", "kNN, top-1 on val",
        "linear evaluation, top-1", "loss less its chance level",
        "effective rank of features (RankMe)", "alignment (0: views agree)",
        "uniformity (lower: more even)", "cosine similarity", "standard deviation (0: collapse)",
        "learning rate", "gradient norm", "images a second", "share of time waiting for data",
    ]  # fmt: skip
    text = texts(figure)
    assert "log(2 x 128 - 1) = 5.54" in text
    assert "k = 20\n" in text
    assert "k = 200" in text
    assert "epoch 2, seed 0" in text


@pytest.mark.long
def test_curves_of_a_run_that_diverged_are_drawn_as_far_as_they_go(finished: Path) -> None:
    with (finished / "metrics.csv").open("a") as file:
        file.write("4,2,nan,inf\n".replace("\n", "," * (_columns(finished) - 4) + "\r\n"))
    (run_,) = read_runs([str(finished)])
    check_picture(png(draw_curves(run_)))
    check_picture(png(draw_comparison([run_, run_])))
    assert len(run_.rows) == 5


def _columns(directory: Path) -> int:
    return len((directory / "metrics.csv").read_text().splitlines()[0].split(","))
