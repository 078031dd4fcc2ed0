"""What counts as trouble, a window at a time: nothing that healthy runs do."""

import math

import pytest

from simclr_pl.monitors.health_warnings import PATIENCE, STUCK_AFTER, Trouble, Window


def windows(losses: list[float], **known: float) -> list[Window]:
    """Windows of a batch of 512 images."""
    usual = {"feature_std": 0.5, "projection_std": 0.95, "dimension": 20.0, "images": 512}
    return [
        Window(loss, steps=50 * n, **({"chance": math.log(1023)} | usual | known))  # type: ignore[arg-type]
        for n, loss in enumerate(losses, 1)
    ]


def said(trouble: list[Window], judge: Trouble | None = None) -> list[str]:
    """Which kinds, in the order in which they were said."""
    judge = judge or Trouble()
    for window in trouble:
        for sentence in judge.look(window):
            assert sentence.startswith("warning: ")
            assert "nan" not in sentence
    kinds: list[str] = judge.state["said"]
    return kinds


CHANCE = math.log(1023)  # 6.93


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([6.9] * 20, ["stuck"]),
        ([6.9] * (STUCK_AFTER - 1), []),
        ([7.5] * 20, ["stuck"]),  # above chance, where a wild learning rate may keep it
        ([6.9] * 5 + [6.5] * 15, []),  # a long warm-up
        ([6.5, 5.5, 5.1] + [5.0] * 20, []),
        ([5.0] * 20, []),  # trained before, at temperature 0.5
        ([5.95] * 20, []),  # likewise, at temperature 1
        ([5.0, 5.3, 5.4, 5.3, 5.2, 5.1, 5.0, 4.9], []),  # likewise, with a new warm-up
        ([13.0, 9.0, 7.5, 6.5, 5.0, 4.0], []),  # a small temperature, from an untrained start
        ([6.8, 5.5, 5.2, 5.5, 5.6, 5.5, 5.3], []),  # a rise at the peak of the learning rate
        ([6.8, 5.5, 5.0, 6.5, 6.5, 5.5, 5.0], []),  # a spike that goes away
        ([6.8, 5.5, 5.0] + [6.93] * PATIENCE, ["divergence"]),
        ([6.8, 5.5, 5.0] + [6.93] * 20, ["divergence"]),
        ([6.8, 6.5, 8.0, 9.0, 20.0, 50.0], ["divergence"]),
        ([6.8, 6.0, 5.5, math.nan, math.inf, math.nan, math.nan], []),  # StopOnNaN says it
        ([math.nan] * 20, []),
    ],
)
def test_of_losses(losses: list[float], expected: list[str]) -> None:
    assert said(windows(losses)) == expected


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"feature_std": 0.01}, ["collapse"]),
        ({"projection_std": 0.01}, ["collapse"]),
        ({"dimension": 1.001}, ["collapse"]),  # two opposite points, behind a batch norm
        ({"dimension": 1.001, "images": 2, "chance": math.log(3)}, []),
        ({"projection_std": 0.2, "dimension": 1.05}, []),
    ],
)
def test_of_representations(known: dict[str, float], expected: list[str]) -> None:
    falling = [1 + 1 / n for n in range(1, 10)]
    assert said(windows(falling, **known)) == expected
    assert said(windows(falling[: PATIENCE - 1], **known)) == []


def test_a_collapse_that_passes_is_none() -> None:
    bad, good = windows([5.0, 4.9], feature_std=0.01), windows([4.8])
    assert said([*bad, *good, *bad, *good]) == []


def test_what_was_said_is_in_the_state() -> None:
    judge, again = Trouble(), Trouble()
    assert said(windows([6.8, 5.0] + [6.93] * 5), judge) == ["divergence"]
    again.state = dict(judge.state)
    assert again.look(windows([6.93])[0]) == []
