"""A batch in parts, encoders for it, and two steps of them: at once, in parts, and literally."""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from commands import NARROW
from noise import pictures
from torch import Tensor, nn

from simclr_pl import NTXentLoss, SimCLRViews
from simclr_pl.core.batch import Batch
from simclr_pl.core.data.loaders import TrainLoader
from simclr_pl.core.data.sources import ArrayImages

SIZE = 40
"""Images of a batch, where parts are encoded without a trainer."""


def batch() -> Batch:
    return Batch(pictures(SIZE, 1, 8, 8), torch.arange(SIZE), torch.arange(SIZE), 3)


def in_parts(size: int, rank: int = 0, world: int = 1) -> list[Batch]:
    """The batch as the loader cuts it into micro-batches of so many images."""
    whole = batch()
    source = ArrayImages(whole.images, whole.labels)
    count = -(-SIZE // size)
    loader = TrainLoader(source, SIZE, rank, world, 0, lambda: 3, micro_batches=count)
    return Batch(*(column[loader.rows] for column in whole[:3]), 3).split(loader.parts)


def images(part: Batch) -> Tensor:
    """Both views in float64."""
    views = SimCLRViews(8, mean=(0.5,), std=(0.3,), jitter=0)
    return torch.cat(views(part.images, part.index, part.epoch)).double()


class Average(nn.BatchNorm2d):
    """Batch norm whose running statistics are plain averages."""

    def __init__(self, width: int) -> None:
        super().__init__(width, momentum=None)


def timms() -> nn.Module:
    """A ResNet with dropout and stochastic depth of its own."""
    import timm

    args = NARROW | {"drop_rate": 0.3, "drop_path_rate": 0.5}
    return timm.create_model("resnet10t", in_chans=1, num_classes=0, **args)


def plain(norm: Callable[[int], nn.Module], last: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3), norm(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, 2), norm(8), nn.GELU()),
        *(nn.Flatten(), nn.Linear(32, 5), last or nn.Identity()),
    )


class Flagged(nn.Module):
    """Scales by what its first batch was, as data-dependent initialisation does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("ready", torch.tensor(False))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.scale = x.detach().std((0, 2, 3))
            self.ready.fill_(True)
        return x / self.scale[:, None, None]


class Bounded(nn.Module):
    """Bounds that are infinite until somebody sets them, as in timm's gemma4_vit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("bound", torch.tensor(torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(-self.bound, self.bound)


ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "no norm": partial(plain, lambda width: nn.Identity()),
    "group norm": partial(plain, partial(nn.GroupNorm, 2)),
    "batch norm": partial(plain, nn.BatchNorm2d),
    "batch norm by plain averages": partial(plain, Average),
    "batch norm without statistics": partial(
        plain, partial(nn.BatchNorm2d, track_running_stats=False)
    ),
    "batch norm that is frozen": lambda: plain(lambda width: nn.BatchNorm2d(width).eval()),
    "dropout": partial(plain, nn.BatchNorm2d, nn.Dropout(0.5)),
    "dropout and stochastic depth of timm": timms,
    # Its power iteration moves in each pass, and what it has come to scales the weights.
    "spectral norm": lambda: plain(
        lambda width: nn.Identity(), nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5))
    ),
    "data-dependent initialisation": partial(plain, Flagged),
    "infinite constants": partial(plain, Bounded),
}
WITHOUT_BATCH_NORM = ("no norm", "group norm")


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return ENCODERS[name]().double()


def loss_of(features: Tensor) -> Tensor:
    """A loss in which each image meets each other."""
    return NTXentLoss(0.2)(*features.chunk(2))


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest value (of what is not merely rounding)."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    scale = float(want.detach().double().abs().max().clamp(min=1e-4))
    difference = torch.where(got == want, 0, got.detach().double() - want.detach().double())
    return float(difference.abs().max()) / scale


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], limit: float = 1e-9) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert error(got[name], value) <= limit, (name, error(got[name], value))


def steps(
    encoder: nn.Module, parts: list[Batch], encode: Callable[..., Tensor]
) -> dict[str, Tensor]:
    """What two steps give: features, loss, gradients, and buffers before and after backward."""
    told = {}
    for step in range(2):
        torch.manual_seed(step)
        encoder.zero_grad()
        features = encode(encoder, parts, images)
        told |= {f"{step} {n} before backward": b.clone() for n, b in encoder.named_buffers()}
        loss = loss_of(features)
        loss.backward()
        told |= {f"{step} features": features.detach(), f"{step} loss": loss.detach()}
        told |= {f"{step} {n}": p.grad for n, p in encoder.named_parameters()}
        told |= {f"{step} {n} after": b.clone() for n, b in encoder.named_buffers()}
    return told


def literally(
    encoder: nn.Module, parts: Sequence[Batch], images: Callable[[Batch], Tensor]
) -> Tensor:
    """What is promised, in the memory of all parts: each goes through a copy of the encoder."""
    twins = [copy.deepcopy(encoder) for _ in parts]
    for twin in twins:
        for name, parameter in encoder.named_parameters():
            owner, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(owner), leaf, parameter)
    features = [twin(images(part)) for twin, part in zip(twins, parts, strict=True)]
    for name, buffer in encoder.named_buffers():
        ends = torch.stack([twin.get_buffer(name) for twin in twins])
        buffer.copy_(ends.mean(0) if ends.is_floating_point() else ends[0])
    pairs = [part.chunk(2) for part in features]
    return torch.cat([first for first, _ in pairs] + [second for _, second in pairs])
