"""Names from elsewhere are drawn as they are."""

from pathlib import Path

import pytest
from commands import run
from matplotlib.figure import Figure

from simclr_pl.pictures.encoded_sample import Snapshot
from simclr_pl.pictures.literal import literal
from simclr_pl.pictures.page import png


@pytest.mark.parametrize("name", ["$0_$10", "$a$", r"\frac$", "_hidden", "plain"])
def test_a_name_is_drawn_letter_by_letter_and_in_the_legend(name: str) -> None:
    figure = Figure()
    axis = figure.subplots()
    axis.plot([0, 1], label=literal(name))
    axis.set_title(literal(name))
    legend = axis.legend()
    assert len(legend.get_texts()) == 1
    assert png(figure)


@pytest.mark.long
def test_a_report_of_classes_with_strange_names(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("$0_$10", "_x", "$a_$", r"\$", "a", "b", "c", "d", "e", "f")
    monkeypatch.setattr(Snapshot, "classes", property(lambda _: names))
    strange = finished.rename(finished.with_name("_$run_$1"))
    done = run("report", strange)
    assert done.code == 0, done
    assert (strange / "pictures" / "confusion.png").stat().st_size > 1000
