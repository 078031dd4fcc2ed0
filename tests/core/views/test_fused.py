"""Views whose colours are one compiled kernel: the same views, to rounding."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from commands import NARROW, QUICK, QUIET, fit, run
from noise import pictures
from run_files import rows
from torch._dynamo import config as dynamo

from simclr_pl import ContrastiveDataModule, SimCLR, SimCLRViews, UserError
from simclr_pl.core.speed.compiler import compiled
from simclr_pl.core.views import color, fused

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler"
)


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """What was compiled is of no use to other tests."""
    yield
    compiled.cache_clear()
    torch.compiler.reset()


def plain(channels: int, **options: Any) -> dict[str, Any]:
    return {"mean": (0.4,) * channels, "std": (0.5,) * channels, "seed": 2} | options


@pytest.fixture
def _doubles() -> Iterator[None]:
    """As in a training step under 64-true, in which micro-batches have their views made."""
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_doubles")
@pytest.mark.parametrize("accelerator", [False, True])
def test_a_runs_precision_changes_no_view(
    accelerator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU nothing is fused unless it is compiled, on accelerators everything."""
    views = SimCLRViews(20, **plain(3, blur=1.0, jitter=1.0))
    views.compiled = accelerator
    monkeypatch.setattr("simclr_pl.core.views.simclr.compiled", lambda function: function)
    images, index = pictures(16, 3, 30, 25), torch.arange(16)
    made = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        made.append([*views(images, index, 1), views.clean(images)])
        sizes = torch.tensor([[30, 20]] * 16)
        made[-1] += [views.one(images, index, 2, sizes), views.clean(images, sizes)]
    assert {view.dtype for each in made for view in each} == {torch.float32}
    assert all(a.equal(b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_every_order_and_strength_is_the_other_implementations(channels: int) -> None:
    """As single operations; `test_color` holds the other one to torchvision."""
    generator = torch.Generator().manual_seed(0)
    planes = torch.rand(channels, 96, 9, 11, generator=generator)
    planes[:, :, 0] = planes[:1, :, 0]  # grays
    planes[:, :, 1] = planes[:, :, 1].round()  # pure colours
    u = torch.rand(96, 6, generator=generator)
    factor = torch.cat([2 * u[:, :3], u[:, 3:4] - 0.5], 1)
    how = color.Jitter(u[:, 4] < 0.8, torch.tensor(color.ORDERS)[torch.arange(96) % 24], factor)
    gray, mean, std = u[:, 5] < 0.3, torch.rand(channels, 1, 1), torch.rand(channels, 1, 1) + 0.5
    got = fused.recoloured(planes, how, gray, mean, std)
    order = color.place_of_hue(how).argsort(stable=True)
    sorted_ = color.Jitter(*(part[order] for part in how))
    want = color.to_grayscale(color.jitter(planes[:, order], sorted_), gray[order])
    want = (want.transpose(0, 1)[order.argsort()] - mean) / std
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@needs_compiler
@pytest.mark.timeout(600)
@pytest.mark.processes
def test_compiled_views_are_the_same_views() -> None:
    for count, channels, size, options in (
        (40, 3, 32, {"blur": 0.5}),
        (17, 3, 24, {}),
        (40, 1, 28, {}),
        (12, 3, 16, {"scale": (0.9, 1.0)}),  # smaller
        (8, 2, 16, {"jitter": 0.0, "grayscale": 0.0}),  # no colours to change
        (20, 5, 16, {"grayscale": 0.3}),
    ):
        images, index = pictures(count, channels, size, size + 4), torch.arange(count)
        views = SimCLRViews(size, **plain(channels, **options))
        fast = SimCLRViews(size, **plain(channels, **options), compiled=True)
        for got, want in zip(fast(images, index, 3), views(images, index, 3), strict=True):
            assert got.shape == want.shape
            torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
        cut = images[..., :size].unsqueeze(1).expand(-1, 2, -1, -1, -1)  # as workers hand them
        for got, want in zip(fast(cut, index, 3), views(cut, index, 3), strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@needs_compiler
@pytest.mark.timeout(600)
@pytest.mark.processes
def test_compiled_views_do_not_depend_on_the_batch() -> None:
    images, index = pictures(24, 3, 32, 32), torch.arange(24)
    views = SimCLRViews(32, **plain(3), compiled=True)
    together = views(images, index, 0)
    torch.set_num_threads(2)
    try:
        for part in (slice(5, 6), slice(3, 20)):
            for got, want in zip(views(images[part], index[part], 0), together, strict=True):
                assert torch.equal(got, want[part])
    finally:
        torch.set_num_threads(1)


@needs_compiler
@pytest.mark.timeout(600)
@pytest.mark.processes
def test_images_of_many_sizes_do_not_compile_again_and_again() -> None:
    """Each batch of a packed folder is padded to its own largest image."""
    views = SimCLRViews(16, **plain(3))
    fast = SimCLRViews(16, **plain(3), compiled=True)
    torch.compiler.reset()
    with dynamo.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        for more in range(8):
            images, index = pictures(8, 3, 20 + 7 * more, 30 + 5 * more), torch.arange(8)
            sizes = torch.tensor([[18 + 7 * more, 30]] * 8)
            for got, want in zip(
                fast(images, index, 3, sizes), views(images, index, 3, sizes), strict=True
            ):
                torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@needs_compiler
@pytest.mark.timeout(600)
@pytest.mark.processes
def test_a_run_trains_on_compiled_views_and_resumes_without(tmp_path: Path) -> None:
    """On the same curve, to what rounding does in four steps; a resume may change the key."""
    outcome = fit(tmp_path / "fast", "--data.compiled", "true", "--data.jitter", "0.5")
    assert "views compiled" in outcome.out
    outcome = fit(tmp_path / "plain", "--data.jitter", "0.5")
    assert "views compiled" not in outcome.out
    for fast, plain_ in zip(rows(tmp_path / "fast"), rows(tmp_path / "plain"), strict=True):
        if "train/loss" in fast:
            assert float(fast["train/loss"]) == pytest.approx(float(plain_["train/loss"]), rel=1e-3)
    more = ("--resume", "--data.jitter", "0.5", "--trainer.max_epochs", "3")
    fit(tmp_path / "fast", *more)
    assert run("validate", "--run_dir", tmp_path / "fast").code == 0
    assert run("views", "--run_dir", tmp_path / "fast").code == 0


@pytest.mark.parametrize("key", ["data.compiled", "model.compiled"])
def test_without_a_compiler_it_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    fit(tmp_path / "plain")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    for command in (("fit", "--run_dir", tmp_path / "run"), ("bench",)):
        outcome = run(*command, *QUICK, f"--{key}", "true")
        assert f"{key} needs a C++ compiler" in outcome.sentence
        assert not (tmp_path / "run").exists()
    # A run from another machine can be looked at all the same.
    for command in ("validate", "predict"):
        outcome = run(command, "--run_dir", tmp_path / "plain", f"--{key}", "true")
        assert (outcome.code, outcome.err) == (0, "")


def test_from_python_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"data\.compiled needs a C\+\+ compiler"):
        SimCLRViews(32, compiled=True)
    for model, data, key in ((True, False, "model"), (False, True, "data")):
        trainer = L.Trainer(**QUIET, max_epochs=1)
        encoder = {"encoder": "resnet10t", "encoder_args": NARROW}
        with pytest.raises(UserError, match=rf"{key}\.compiled needs a C\+\+ compiler.*--{key}"):
            trainer.fit(
                SimCLR(**encoder, compiled=model), ContrastiveDataModule("digits", compiled=data)
            )
