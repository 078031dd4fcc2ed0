"""Health while training: the numbers, on any number of ranks; warnings that real runs earn."""

import contextlib
import functools
import io
import math
from collections.abc import Callable
from itertools import combinations, permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from commands import QUICK, REPOSITORY, checkpoint, fit, rows, run, same_weights
from monitored import Attraction, Other, digits, trainer
from ranks import ranks
from torch import Tensor, nn

from simclr_pl import HealthMonitor, UserError
from simclr_pl.core.batch import EvaluationOutput
from simclr_pl.monitors import health_metrics as sphere
from simclr_pl.monitors.health_metrics import StepHealth, rankme, step_health

NAMES = {
    "health/chance_loss",
    "health/loss_over_chance", "health/positive_similarity", "health/negative_similarity",
    "health/alignment", "health/uniformity", "health/feature_std", "health/projection_std",
}  # fmt: skip


def draw(images: int, seed: int = 0, width: int = 6) -> tuple[Tensor, Tensor]:
    """Both views' features and projections, `[2, B, ...]`: of one cone, of all lengths."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, images, 2 * width, generator=generator, dtype=torch.float64)
    shared = torch.randn(images, 2 * width, generator=generator, dtype=torch.float64)
    both = (shared + 0.5 * noise + 0.3) * (0.1 + torch.arange(images)[:, None])
    return both[..., :width].abs(), both[..., width - 2 :]


def measured(views: tuple[Tensor, Tensor]) -> StepHealth:
    return step_health(*(rows.flatten(0, 1) for rows in views))


# The numbers --------------------------------------------------------------------------------------


def unit(rows: Tensor) -> list[list[float]]:
    return [[x / math.hypot(*row) for x in row] for row in rows.tolist()]


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def mean(values: Any) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def spread(rows: list[list[float]]) -> float:
    columns = list(zip(*rows, strict=True))
    deviations = [math.sqrt(mean((x - mean(c)) ** 2 for x in c)) for c in columns]
    return mean(deviations) * math.sqrt(len(columns))


def literal(views: tuple[Tensor, Tensor]) -> dict[str, float]:
    """The definitions, a pair at a time."""
    (h1, h2), (z1, z2) = ([unit(view) for view in rows] for rows in views)
    views_of = [(i, row) for one in (z1, z2) for i, row in enumerate(one)]
    return {
        "positive_similarity": mean(dot(a, b) for a, b in zip(z1, z2, strict=True)),
        "negative_similarity": mean(
            dot(a, b) for (i, a), (j, b) in permutations(views_of, 2) if i != j
        ),
        "alignment": mean(math.dist(a, b) ** 2 for a, b in zip(z1, z2, strict=True)),
        "uniformity": math.log(
            mean(math.exp(-2 * math.dist(a, b) ** 2) for a, b in combinations(z1, 2))
        ),
        "feature_std": spread(h1 + h2),
        "projection_std": spread(z1 + z2),
    }


@pytest.mark.parametrize("images", [2, 3, 17])
def test_numbers_are_those_of_the_definitions(images: int) -> None:
    views = draw(images)
    got = measured(views)
    expected = literal(views)
    assert {k: v for k, v in got._asdict().items() if k in expected} == pytest.approx(
        expected, rel=1e-12, abs=1e-12
    )
    values = torch.linalg.svdvals(F.normalize(views[1][0], dim=1)) ** 2
    assert got.dimension == pytest.approx(float(values.sum() ** 2 / (values**2).sum()))
    assert got.images == images


def test_of_three_views_every_two_are_positives() -> None:
    (h, z), (_, more) = draw(5), draw(5, seed=1)
    views = torch.cat([z, more[:1]])
    features = torch.cat([h, h[:1].flip(1)])
    got = step_health(features.flatten(0, 1), views.flatten(0, 1), 3)
    pairs = [literal((features[[i, j]], views[[i, j]])) for i, j in combinations(range(3), 2)]
    for name in ("positive_similarity", "alignment"):
        assert getattr(got, name) == pytest.approx(mean(pair[name] for pair in pairs), rel=1e-12)
    rows = [(i, row) for view in views for i, row in enumerate(unit(view))]
    negatives = mean(dot(a, b) for (i, a), (j, b) in permutations(rows, 2) if i != j)
    assert got.negative_similarity == pytest.approx(negatives, rel=1e-12)
    assert got.projection_std == pytest.approx(spread([row for _, row in rows]), rel=1e-12)
    assert got.images == 5


def test_uniformity_is_of_the_first_images_where_there_are_many() -> None:
    views = draw(600)
    z = F.normalize(views[1][0, : sphere.PAIRED], dim=1)
    expected = torch.pdist(z).square().mul(-2).exp().mean().log()
    assert measured(views).uniformity == pytest.approx(float(expected), rel=1e-12)


def test_a_sphere_full_of_projections() -> None:
    z = torch.randn(2, 2000, 64, generator=torch.Generator().manual_seed(0))
    got = step_health(z.flatten(0, 1), z.flatten(0, 1))
    assert got.projection_std == pytest.approx(1, abs=0.01)
    assert got.uniformity == pytest.approx(-4, abs=0.15)  # of an infinite dimension: -4
    assert abs(got.negative_similarity) < 1e-3
    assert got.alignment == pytest.approx(2, abs=0.05)  # the views have nothing to do with another


def test_collapsed_projections() -> None:
    z = torch.ones(64, 8) + 1e-6 * torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    got = step_health(z, z)
    assert got.positive_similarity == pytest.approx(1)
    assert got.negative_similarity == pytest.approx(1)
    assert got.uniformity == pytest.approx(0, abs=1e-6)
    assert got.dimension == pytest.approx(1)
    # What float32 left of the noise is there still: nothing cancels.
    assert got.projection_std == pytest.approx(spread(unit(z.double())), rel=1e-3)
    assert 1e-7 < got.projection_std < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_widened_before_anything_else(dtype: torch.dtype) -> None:
    views = draw(20)
    narrow = tuple(rows.to(dtype) for rows in views)
    assert measured(narrow) == measured(tuple(rows.double() for rows in narrow))  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [torch.zeros(8, 4), torch.ones(2, 4)])
def test_zeros_and_a_lone_image_are_no_reason_to_stop(rows: Tensor) -> None:
    got = step_health(rows, rows)
    assert got.feature_std == got.negative_similarity == 0


# RankMe -------------------------------------------------------------------------------------------


def by_svd(features: Tensor) -> float:
    values = torch.linalg.svdvals(features.double())
    share = values[values > values.max() * 1e-8] / values.sum()
    return float((-share * share.log()).sum().exp())


@pytest.mark.parametrize(("images", "width", "rank"), [(50, 8, 8), (5, 8, 5), (50, 8, 3)])
def test_rankme_is_the_entropy_of_singular_values(images: int, width: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(images, rank, generator=generator, dtype=torch.float64)
    features = left @ torch.randn(rank, width, generator=generator, dtype=torch.float64)
    got = rankme(features.T @ features)
    assert got == pytest.approx(by_svd(features), rel=1e-6)
    assert 1 < got <= rank


def test_rankme_of_orthogonal_features_is_their_number() -> None:
    assert rankme(7 * torch.eye(5, dtype=torch.float64)) == pytest.approx(5)
    assert rankme(torch.ones(5, 5, dtype=torch.float64)) == pytest.approx(1)
    assert rankme(torch.zeros(5, 5, dtype=torch.float64)) == pytest.approx(1)
    assert math.isnan(rankme(torch.full((5, 5), math.inf, dtype=torch.float64)))


# Several ranks ------------------------------------------------------------------------------------


def on_this_rank(sizes: list[int]) -> tuple[dict[str, float], float, dict[str, float]]:
    """A step, a validation and the warnings' window, on this rank's rows."""
    rank = dist.get_rank() if dist.is_initialized() else None

    def mine(rows: Tensor, axis: int = 0) -> Tensor:
        return rows if rank is None else rows.split(sizes, axis)[rank]

    views = draw(sum(sizes))
    step = measured(tuple(mine(rows, 1) for rows in views))  # type: ignore[arg-type]
    logged: dict[str, float] = {}
    trainer: Any = SimpleNamespace(
        global_step=0, loggers=[], sanity_checking=False, current_epoch=0, is_global_zero=False
    )
    module: Any = SimpleNamespace(log=lambda name, value, **_: logged.update({name: float(value)}))
    monitor = HealthMonitor(2)
    for number in range(1, 4):
        trainer.global_step = number
        features, projections = (mine(rows, 1).flatten(0, 1) for rows in draw(sum(sizes), number))
        # A rank's loss is such that the mean over ranks is the global one.
        one = torch.tensor(float(number) + (0 if rank is None else rank - (len(sizes) - 1) / 2))
        output: Any = {"loss": one.double(), "features": features, "projections": projections}
        output["chance"] = math.log(2 * sum(sizes) - 1)
        monitor.on_train_batch_end(trainer, module, output, None, 0)
    again = HealthMonitor(2)
    again.load_state_dict(monitor.state_dict())
    for seed in (5, 6):
        features = mine(draw(sum(sizes), seed)[0][0])
        nothing = torch.zeros(len(features), dtype=torch.int64)
        clean = EvaluationOutput(features=features, labels=nothing, index=nothing)
        again.on_validation_batch_end(trainer, module, clean, None, 0)
    again.on_validation_epoch_end(trainer, module)
    return step._asdict(), again.state_dict()["loss"], logged


@pytest.mark.ddp
@pytest.mark.parametrize("sizes", [[3, 8], [1, 6, 4], [300, 400], [500, 7, 200]])
def test_numbers_are_those_of_one_process(sizes: list[int]) -> None:
    alone = on_this_rank(sizes)
    assert alone[2].keys() == NAMES | {"health/rankme"}
    assert alone[1] == 6
    for got in ranks(len(sizes), on_this_rank, sizes):
        for one, other in zip(got, alone, strict=True):
            assert one == pytest.approx(other, rel=1e-9, abs=1e-9)


# What is logged -----------------------------------------------------------------------------------


def test_metrics_come_with_the_first_step_and_every_so_many(tmp_path: Path) -> None:
    often = ("--health.every_n_steps=3", "--trainer.max_epochs=4")
    fit(tmp_path / "run", *often, "--trainer.log_every_n_steps=4")
    table = {int(row["step"]): row for row in rows(tmp_path / "run")}
    assert sorted(step for step, row in table.items() if NAMES & row.keys()) == [0, 2, 5]
    assert all(table[step].keys() >= NAMES for step in (0, 2, 5))
    assert all("epoch" in row for row in table.values())
    assert sum("health/rankme" in row for row in table.values()) == 4
    every = fit(tmp_path / "every", "--health.every_n_steps=1")
    assert "warning" not in every.out
    for row in rows(tmp_path / "every"):
        chance = float(row["train/loss"]) - float(row["health/loss_over_chance"])
        assert chance == pytest.approx(math.log(255), rel=1e-6)
        two = 2 - 2 * float(row["health/positive_similarity"])
        assert float(row["health/alignment"]) == pytest.approx(two)


def test_zero_turns_it_off(tmp_path: Path) -> None:
    fit(tmp_path / "run", "--health.every_n_steps=0")
    assert not any(name.startswith("health") for row in rows(tmp_path / "run") for name in row)


def test_a_number_below_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"health.every_n_steps is -1, but must be 0"):
        HealthMonitor(-1)


def test_other_callbacks_see_the_numbers() -> None:
    lightning = trainer(HealthMonitor(1), max_epochs=1, limit_train_batches=1)
    lightning.fit(Other(), digits())
    assert lightning.callback_metrics.keys() >= NAMES | {"health/rankme"}


def test_rankme_is_of_the_whole_validation_split(tmp_path: Path) -> None:
    from simclr_pl.protocols.features import encode

    model, data = Other().double(), digits(50)
    lightning = trainer(HealthMonitor(), max_epochs=1, limit_train_batches=1)
    lightning.fit(model, data)
    expected = by_svd(encode(model, data, "val").features)
    assert float(lightning.callback_metrics["health/rankme"]) == pytest.approx(expected, rel=1e-5)


def test_training_does_not_notice(tmp_path: Path) -> None:
    fit(tmp_path / "with", "--health.every_n_steps=1")
    fit(tmp_path / "without", "--health.every_n_steps=0")
    assert same_weights(checkpoint(tmp_path / "with"), checkpoint(tmp_path / "without"))
    table = [
        {name: value for name, value in row.items() if not name.startswith("health/")}
        for row in rows(tmp_path / "with")
    ]
    assert table == rows(tmp_path / "without")


@pytest.mark.long
def test_a_resumed_run_has_the_same_numbers_to_the_bit(tmp_path: Path) -> None:
    often = ("--health.every_n_steps=3", "--trainer.max_epochs=4")
    fit(tmp_path / "through", *often)
    stop = ("--trainer.callbacks+=recording.Interruption", "--trainer.callbacks.step=5")
    assert run("fit", *QUICK, *often, *stop, "--run_dir", tmp_path / "again").code != 0
    fit(tmp_path / "again", *often, "--resume")
    assert rows(tmp_path / "again") == rows(tmp_path / "through")
    states = [checkpoint(tmp_path / n)["callbacks"]["HealthMonitor"] for n in ("again", "through")]
    assert states[0] == states[1]
    assert states[0]["steps"] == 8


def test_between_looks_nobody_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = HealthMonitor(10)

    def waits(*_: Any) -> Any:
        raise AssertionError("waits for the device")

    output: Any = {"loss": torch.tensor(1.0)}
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, waits)
    for step in range(11, 20):
        monitor.on_train_batch_end(SimpleNamespace(global_step=step), None, output, None, 0)  # type: ignore[arg-type]


# Warnings, earned ---------------------------------------------------------------------------------


class Jump(L.Callback):
    """Another learning rate from some step on, as at the end of a warm-up gone wrong."""

    def __init__(self, step: int, learning_rate: float) -> None:
        self.step, self.learning_rate = step, learning_rate

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step >= self.step:
            trainer.optimizers[0].param_groups[0]["lr"] = self.learning_rate


def plain_network(model: Other) -> Other:
    """Without batch norm, which forgives any learning rate, and without dropout."""
    model.encoder = nn.Sequential(
        nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU()
    )
    model.projector = nn.Linear(32, 16)
    return model


def collapsing() -> Other:
    model = plain_network(Other())
    model.loss = Attraction()
    return model


CASES: dict[str, tuple[Callable[[], Other], int, list[L.Callback], str]] = {
    "collapse": (collapsing, 25, [], "has collapsed by step"),
    "stuck": (lambda: plain_network(Other(1e-12)), 40, [], "the loss is stuck at"),
    "divergence": (lambda: plain_network(Other()), 27, [Jump(100, 100.0)], "the loss diverges"),
}


def printed(model: Other, epochs: int, *callbacks: L.Callback, path: Path | None = None) -> str:
    """What a run says, from where a checkpoint left off if there is one."""
    out = io.StringIO()
    lightning = trainer(*callbacks, max_epochs=epochs, limit_val_batches=0)
    there = str(path) if path and path.exists() else None
    with contextlib.redirect_stdout(out):
        lightning.fit(model, digits(), ckpt_path=there, weights_only=True)
    if path:
        lightning.save_checkpoint(path)
    return out.getvalue()


@functools.cache
def through(kind: str) -> str:
    """What a run says that nobody has broken off."""
    build, epochs, callbacks, _ = CASES[kind]
    return printed(build(), epochs, HealthMonitor(10), *callbacks)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.long
def test_trouble_is_said_once_with_a_remedy(kind: str) -> None:
    sentence, out = CASES[kind][-1], through(kind)
    assert out.count(sentence) == out.count("warning: ") == 1, out
    assert "--model.learning_rate" in out
    assert len(out.strip().splitlines()) == 1


@pytest.mark.parametrize("broken_off", ["before", "behind"])
@pytest.mark.parametrize("kind", CASES)
@pytest.mark.long
def test_trouble_is_said_once_over_a_resume(kind: str, broken_off: str, tmp_path: Path) -> None:
    """Counting goes on in the middle of a window; what was said is not said again."""
    build, epochs, callbacks, _ = CASES[kind]
    path = tmp_path / "broken-off.ckpt"
    first = 13 if broken_off == "before" else epochs
    parts = [
        printed(build(), end, HealthMonitor(10), *callbacks, path=path)
        for end in (first, epochs + (0 if broken_off == "before" else 15))
    ]
    whole = through(kind)
    assert parts == (["", whole] if broken_off == "before" else [whole, ""])


@pytest.mark.long
def test_many_looks_or_few_make_no_difference() -> None:
    outs = [printed(collapsing(), 25, HealthMonitor(every)) for every in (1, 5, 50)]
    assert outs[0]
    assert outs[0] == outs[1] == outs[2]


HEALTHY: dict[str, tuple[Callable[[], Other], int, int]] = {
    "plain": (Other, 128, 40),
    "small temperature": (lambda: Other(temperature=0.05), 128, 40),
    "large temperature": (lambda: Other(temperature=1.0), 128, 40),
    "high learning rate": (lambda: Other(1.0), 128, 40),
    "tiny batch": (lambda: Other(0.01), 8, 3),
    "a batch of two": (lambda: Other(0.003), 2, 1),
    "no batch norm": (lambda: plain_network(Other()), 128, 40),
}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.long
def test_a_healthy_run_is_left_in_peace(name: str) -> None:
    build, batch, epochs = HEALTHY[name]
    out = io.StringIO()
    lightning = trainer(HealthMonitor(5), max_epochs=epochs, limit_val_batches=0)
    with contextlib.redirect_stdout(out):
        lightning.fit(build(), digits(batch))
    assert lightning.global_step > 400
    assert out.getvalue() == ""


@pytest.mark.long
def test_the_digits_recipe_is_left_in_peace(tmp_path: Path) -> None:
    config = REPOSITORY / "configs" / "digits.yaml"
    more = (
        "--trainer.max_epochs=20",
        "--health.every_n_steps=5",
        "--wandb=off",
        "--linear.every_n_epochs=0",
    )
    outcome = run("fit", "--config", config, *more, "--run_dir", tmp_path / "run")
    assert outcome.code == 0, outcome
    assert "warning" not in outcome.out + outcome.err
    last = next(row for row in reversed(rows(tmp_path / "run")) if row.keys() >= NAMES)
    assert float(last["health/loss_over_chance"]) < -1
    assert float(rows(tmp_path / "run")[-1]["knn/val_top1"]) > 0.85


# Errors -------------------------------------------------------------------------------------------


class Closed(io.StringIO):
    """A standard output whose reader has gone, but for what is no warning of trouble."""

    def write(self, text: str) -> int:
        if "collapsed" in text:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)


@pytest.mark.long
def test_a_warning_that_cannot_be_printed_ends_no_training() -> None:
    build, epochs, callbacks, _ = CASES["collapse"]
    out, lightning = Closed(), trainer(HealthMonitor(10), *callbacks, max_epochs=epochs)
    with contextlib.redirect_stdout(out):
        lightning.fit(build(), digits())
    assert lightning.current_epoch == epochs
    sentence = "warning: health is not watched (BrokenPipeError: [Errno 32] Broken pipe)"
    assert out.getvalue().count(sentence) == 1


@pytest.mark.parametrize("name", ["step_health", "rankme"])
def test_an_error_in_the_arithmetic_is_said_once_and_survived(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: Any) -> None:
        raise ArithmeticError("no convergence")

    monkeypatch.setattr(f"simclr_pl.monitors.health.{name}", broken)
    lightning = trainer(HealthMonitor(1), max_steps=3, limit_val_batches=1, val_check_interval=1)
    lightning.fit(Other(), digits())
    assert lightning.global_step == 3
    assert capsys.readouterr().out.count("health is not watched (ArithmeticError: no conv") == 1
