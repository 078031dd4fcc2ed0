"""Nothing in a training step makes the host wait for the device.

Tensors on PyTorch's `meta` device have shapes and no numbers: whoever asks them for one (which rows
are on, how many, the largest) fails, as an accelerator would have to be waited for.
"""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from simclr_pl import ContrastiveDataModule, HealthMonitor, OnlineProbe, SimCLR, SimCLRViews
from simclr_pl.core.views.parameters import ViewParameters
from simclr_pl.core.views.simclr import _blur_all, _blur_some


@pytest.mark.parametrize("workers_cut", [False, True])
@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (3, {"blur": 0.5}),
        (3, {"blur": 1.0, "scale": (0.5, 1.0)}),
        (1, {"blur": 0.0}),
        (2, {"jitter": 0.0, "grayscale": 0.0}),
    ],
)
def test_views_ask_the_device_for_nothing(
    channels: int, options: dict[str, Any], workers_cut: bool
) -> None:
    views = SimCLRViews(24, mean=(0.5,) * channels, std=(0.5,) * channels, **options)
    shape = (16, 2, channels, 24, 24) if workers_cut else (16, channels, 40, 44)
    images = torch.empty(shape, dtype=torch.uint8, device="meta")
    index = torch.empty(16, dtype=torch.int64, device="meta")
    for view in views(images, index, 3):
        assert (view.device.type, view.shape) == ("meta", (16, channels, 24, 24))
    if not workers_cut:
        assert views.clean(images).shape == (16, channels, 24, 24)
        sizes = torch.empty(16, 2, dtype=torch.int64, device="meta")  # of packed images
        for view in views(images, index, 3, sizes):
            assert view.shape == (16, channels, 24, 24)
        assert views.clean(images, sizes).shape == (16, channels, 24, 24)


def test_blurring_all_and_dropping_some_is_blurring_some() -> None:
    views = SimCLRViews(32, blur=0.5)
    how: ViewParameters = views.draw(torch.arange(40), 1, 0)
    assert 10 < int(how.blur.sum()) < 30
    images: Tensor = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    want = images.clone()
    _blur_some(want, how)
    got = _blur_all(images, how.blur, how.sigma)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    assert torch.equal(got[~how.blur], images[~how.blur])


class _Watch(L.Callback):
    """Makes torch raise where a step between two that are logged waits for the device."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step in (4, 5, 6):
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, *args: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("fast", [False, True])
def test_no_step_waits_for_a_gpu(tmp_path: Path, fast: bool) -> None:
    model = SimCLR("resnet18", optimizer="lars", compiled=fast)
    data = ContrastiveDataModule("digits", batch_size=128, image_size=32, compiled=fast)
    trainer = L.Trainer(
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        max_steps=9,
        log_every_n_steps=9,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=str(tmp_path),
        callbacks=[OnlineProbe(), HealthMonitor(), _Watch()],
    )
    trainer.fit(model, data)
    assert trainer.global_step == 9
