"""Gaussian blur against torchvision's."""

import pytest
import torch
from torchvision.transforms.v2 import functional as TF

from simclr_pl.core.views.blur import REACH, blur_radius, blurred


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 8, 28, 96, 224])
def test_blur_is_torchvisions(size: int, channels: int) -> None:
    """Which cuts no kernel: to what lies beyond 4.5 standard deviations."""
    sigma = torch.tensor([0.1, 0.4, 1.0, 2.0])
    planes = pictures(channels, 4, size, size)
    got = blurred(planes, sigma)
    kernel = 2 * blur_radius(size) + 1
    for i, s in enumerate(sigma.tolist()):
        want = TF.gaussian_blur(planes[:, i], [kernel, kernel], [s, s])
        torch.testing.assert_close(got[:, i], want, atol=2e-5, rtol=0)


def test_the_widest_kernel_of_a_batch_changes_no_bit_of_the_others() -> None:
    planes, sigma = pictures(3, 3, 96, 96), torch.tensor([0.1, 0.8, 2.0])
    together = blurred(planes, sigma)
    for i in range(3):
        assert torch.equal(blurred(planes[:, i : i + 1], sigma[i : i + 1])[:, 0], together[:, i])


def test_blur_leaves_its_input_alone() -> None:
    planes = pictures(3, 2, 24, 24)
    kept = planes.clone()
    blurred(planes, torch.tensor([1.0, 2.0]))
    assert torch.equal(planes, kept)


def test_the_kernel_is_a_tenth_of_the_image_as_in_the_authors_code() -> None:
    """google-research/simclr `data_util.py`: radius = (height // 10) // 2, kernel 2 radius + 1."""
    assert [blur_radius(s) for s in (224, 96, 40, 32, 8)] == [11, 4, 2, 1, 1]
    dot = torch.zeros(1, 1, 224, 224)
    dot[..., 112, 112] = 1
    for sigma, reach in ((2.0, int(2.0 * REACH)), (10.0, 11)):
        row = blurred(dot, torch.tensor([sigma]))[0, 0, 112]
        assert row.nonzero()[:, 0].tolist() == list(range(112 - reach, 112 + reach + 1))
