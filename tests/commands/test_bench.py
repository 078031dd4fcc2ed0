"""`bench`: what it measures, says and writes. How fast anything is decides nothing here."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from commands import ENCODER_ARGS, Outcome, fit, run
from noise import write_images

from simclr_pl import ContrastiveDataModule, SimCLR
from simclr_pl.commands.bench import ceilings
from simclr_pl.commands.bench.bench import bottleneck
from simclr_pl.core.batch import Batch, Views
from simclr_pl.images.workers.images import ImageFiles

MODEL = (
    *("--trainer.accelerator", "cpu", "--model.encoder", "resnet10t", "--model.optimizer", "sgd"),
    *("--model.encoder_args", ENCODER_ARGS, "--seconds", "0.2"),
)


def bench(*args: object) -> Outcome:
    return run("bench", *MODEL, *args)


@pytest.fixture(autouse=True, scope="module")
def _hasty() -> Iterator[None]:
    """Data alone is read for a moment: how fast it is decides nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "DATA_SECONDS", 0.1)
        yield


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder, in which is measured."""
    return tmp_path_factory.mktemp("here")


@pytest.fixture(scope="module")
def measured(
    here: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Outcome]:
    out = tmp_path_factory.mktemp("bench") / "deep" / "bench.json"
    with contextlib.chdir(here):
        outcome = bench("--data.batch_size", 64, "--model.projection_dim", 128, "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    return json.loads(out.read_text()), outcome


@pytest.mark.long
def test_the_file_holds_what_was_measured(measured: tuple[dict[str, Any], Outcome]) -> None:
    found, _ = measured
    speed, share = found["images_per_s"], found["share"]
    assert speed.keys() == {"data", "views", "bare_step", "end_to_end"}
    assert all(rate > 0 for rate in speed.values())
    ratio = found["end_to_end_over_bare"]
    assert ratio == pytest.approx(speed["end_to_end"] / speed["bare_step"])
    low, high = found["end_to_end_over_bare_quartiles"]
    assert 0 < low <= high
    assert found["step_seconds"] == pytest.approx(64 / speed["end_to_end"])
    parts = {"network", "loss", "optimizer", "views", "waiting_for_data", "callbacks", "rest"}
    assert share.keys() == parts
    assert sum(share.values()) == pytest.approx(1)
    assert share["views"] == pytest.approx(speed["end_to_end"] / speed["views"])
    assert all(share[part] > 0 for part in parts - {"rest"})
    assert found["peak_memory_bytes"] > 50 * 2**20
    assert found["largest_batch"] is None  # of a CPU
    assert found["matrix_flops_per_s"] > 1e8
    assert found["matrix_dtype"] == "float32"
    done = found["flops_per_image"] * speed["end_to_end"] / found["matrix_flops_per_s"]
    assert found["share_of_matrix_rate"] == pytest.approx(done)
    assert (found["batch_size"], found["dataset"], found["image_size"]) == (64, "digits", 8)
    assert found["turns"] >= 5
    assert "torch" in found["versions"]


@pytest.mark.long
def test_a_person_reads_the_same_and_what_to_change(
    measured: tuple[dict[str, Any], Outcome],
) -> None:
    found, outcome = measured
    assert f"{found['images_per_s']['end_to_end']:,.0f} images/s" in outcome.out
    assert f"{found['end_to_end_over_bare']:.3f} of the bare step" in outcome.out
    assert found["bottleneck"] in outcome.out
    assert "bottleneck is" in found["bottleneck"]
    assert "--" in found["bottleneck"]


@pytest.mark.long
@pytest.mark.usefixtures("measured")
def test_it_leaves_nothing_behind(here: Path) -> None:
    assert list(here.iterdir()) == []


@pytest.mark.long
def test_operations_are_counted_as_the_formula_has_them(
    measured: tuple[dict[str, Any], Outcome], tmp_path: Path
) -> None:
    """A projector's last layer of P outputs and width F: 2FP a view, three times, two views."""
    out = tmp_path / "256.json"
    assert bench("--model.projection_dim", 256, "--data.batch_size", 32, "--out", out).code == 0
    found = json.loads(out.read_text())["flops_per_image"] - measured[0]["flops_per_image"]
    assert found == pytest.approx(2 * 3 * 2 * 16 * 128)


@pytest.mark.parametrize(
    ("options", "batch"),
    [
        (("--trainer.devices", 2, "--trainer.num_nodes", 2), 16),
        (("--trainer.devices", "0,1"), 32),
        (("--trainer.devices", "[0,1,3,4]", "--model.micro_batch_size", 20), 16),
        (("--model.micro_batch_size", 20, "--trainer.gradient_clip_val", 0.5), 64),
        (("--trainer.precision", "bf16-mixed", "--model.optimizer", "lars"), 64),
        (("--trainer.fast_dev_run", "true", "--trainer.max_steps", 3), 64),
    ],
)
@pytest.mark.long
def test_other_recipes_are_measured_on_one_device(
    tmp_path: Path, options: tuple[object, ...], batch: int
) -> None:
    out = tmp_path / "bench.json"
    outcome = bench("--data.batch_size", 64, "--out", out, *options)
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(out.read_text())
    assert found["batch_size"] == batch
    if "bf16-mixed" in options:
        assert found["matrix_dtype"] == "bfloat16"


@pytest.mark.long
def test_a_share_of_the_micro_batch_is_measured_and_its_views_are_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    make_views = ContrastiveDataModule.make_views

    def counted(self: ContrastiveDataModule, batch: Batch) -> Views:
        made.append(len(batch.labels))
        return make_views(self, batch)

    monkeypatch.setattr(ContrastiveDataModule, "make_views", counted)
    outcome = bench(
        *("--trainer.devices", 2, "--data.batch_size", 60, "--model.micro_batch_size", 30),
        *("--health.every_n_steps", 0),
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert set(made) == {15}
    # Two parts: in a real step the first is made twice, the second once, and in a turn's too. Only
    # the bare step's two are made once.
    assert len(made) % 3 == 2


@pytest.mark.long
def test_nothing_ends_it_early(tmp_path: Path) -> None:
    """EarlyStopping of a number of the validation that there is none of here, for one."""
    overlay = tmp_path / "early.yaml"
    stopping = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}
    overlay.write_text(yaml.safe_dump({"trainer": {"callbacks": [stopping]}}))
    outcome = bench("--config", overlay, "--data.batch_size", 64)
    assert (outcome.code, outcome.err) == (0, "")


class _Data(NamedTuple):
    dataset: str = "folder"
    num_workers: int = 1
    compiled: bool = False
    whole: Any = SimpleNamespace(train=ImageFiles([], torch.empty(0)))


@pytest.mark.parametrize(
    ("most", "data", "sentence"),
    [
        ("callbacks", _Data("digits"), "is the probe and the monitors: 60% of a step"),
        ("rest", _Data("digits"), "is the loop around the step: 60% of a step"),
        ("rest", _Data(), "is the cores: 60% of a step goes to what shares them, the 1 worker"),
        ("waiting_for_data", _Data(num_workers=0), "Give more --data.num_workers (now 0, of"),
        ("waiting_for_data", _Data(num_workers=999), "no more cores than worker processes"),
        ("waiting_for_data", _Data("hub:a/b", 0), "Give more --data.num_workers (now 0, of"),
        ("waiting_for_data", _Data("packed"), "It is read from the disk"),
        ("views", _Data(), "Give --data.compiled true"),
        ("views", _Data(compiled=True), "Smaller views"),
    ],
)
def test_each_bottleneck_has_its_advice(most: str, data: Any, sentence: str) -> None:
    names = ("network", "loss", "optimizer", "views", "waiting_for_data", "callbacks", "rest")
    share = {name: 0.6 if name == most else 0.4 / 6 for name in names}
    said = bottleneck({"share": share, "end_to_end_over_bare": 0.2}, data, SimCLR())
    assert sentence in said


def test_bfloat16_is_advised_where_it_is_not_used() -> None:
    model = SimCLR()
    model._device = torch.device("cuda", 0)  # as Lightning would say
    for dtype, advised in (("float32", True), ("bfloat16", False)):
        found = {"share": {}, "end_to_end_over_bare": 1.0, "matrix_dtype": dtype}
        assert ("bf16-mixed" in bottleneck(found, _Data(), model)) is advised  # type: ignore[arg-type]


@pytest.mark.processes
def test_image_files_are_measured_with_their_workers(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 40, 24, 20)
    folder = ("--data.dataset", "folder", "--data.root", images)
    out = tmp_path / "bench.json"
    size = ("--data.image_size", 16, "--data.batch_size", 8, "--data.num_workers", 1)
    outcome = bench(*folder, *size, "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(out.read_text())["dataset"] == "folder"


@pytest.mark.long
def test_a_run_stands_for_its_recipe_and_is_left_alone(tmp_path: Path) -> None:
    fit(tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    outcome = run("bench", "--run_dir", tmp_path / "run", "--seconds", "0.2")
    assert (outcome.code, outcome.err) == (0, "")
    assert "resnet10t, digits at 8 px, batches of 128 images" in outcome.out
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--seconds", "0"), "seconds is 0.0, but must be above 0"),
        (("--out", "."), ". is a folder: give a file as --out"),
        (("--out", "/proc/no/bench.json"), "/proc/no/bench.json cannot be written"),
        (("--trainer.devices", "0"), "trainer.devices is 0, but must be at least 1"),
        (("--data.batch_size", "1"), "at least 2: images are compared"),
        (("--data.batch_size", "100000"), "data.batch_size is 100000, but must be at most 1458"),
        (("--data.dataset", "digts"), "did you mean digits"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--data.batchsize", "3"), "data.batch_size"),
    ],
)
def test_what_is_wrong_is_a_sentence(options: tuple[str, ...], sentence: str) -> None:
    outcome = bench(*options)
    assert sentence in outcome.sentence
