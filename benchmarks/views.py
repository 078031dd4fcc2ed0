"""Augmentation alone: these views against torchvision's, kornia's and lightly's, on a CPU.

    pip install -e ".[bench]"
    python benchmarks/views.py             # one thread, 2 minutes

uint8 images in memory to two normalised float32 views each; all of them in turns within one run.
torchvision is its transforms of PIL images, one after the other; kornia works on float batches.
Writes benchmarks/results/views-cpu.md.
"""

from collections.abc import Callable

import kornia.augmentation as K
import torch
import torchvision.transforms as T
from lightly.transforms import SimCLRTransform
from measuring import Timing, in_turns, machine, table, write
from PIL import Image
from torch import Tensor

from simclr_pl import SimCLRViews

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
Work = Callable[[], object]


class Case:
    """A recipe's augmentation, on images in memory, in everybody's words."""

    def __init__(self, size: int, view: int, batch: int, strength: float, blur: float) -> None:
        self.size, self.view, self.batch, self.strength, self.blur = (
            size,
            view,
            batch,
            strength,
            blur,
        )
        generator = torch.Generator().manual_seed(0)
        # Smooth, as photographs are: noise would be the same work.
        small = torch.randint(0, 256, (batch, 3, size // 4, size // 4), generator=generator)
        large = torch.nn.functional.interpolate(small.float(), size, mode="bicubic")
        self.images = large.clamp(0, 255).to(torch.uint8)
        self.arrays = [image.permute(1, 2, 0).contiguous().numpy() for image in self.images]

    def ours(self, *, compiled: bool = False) -> Work:
        views = SimCLRViews(
            self.view, jitter=self.strength, blur=self.blur, mean=MEAN, std=STD, compiled=compiled
        )
        index, epoch = torch.arange(self.batch), iter(range(10**6))
        return lambda: views(self.images, index, next(epoch))

    def torchvision(self) -> Work:
        s = self.strength
        jitter = T.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)
        kernel = max(3, self.view // 10 // 2 * 2 + 1)
        transform = T.Compose(
            [
                T.RandomResizedCrop(self.view),
                T.RandomHorizontalFlip(),
                T.RandomApply([jitter], 0.8),
                T.RandomGrayscale(0.2),
                *([T.RandomApply([T.GaussianBlur(kernel)], self.blur)] if self.blur else []),
                T.ToTensor(),
                T.Normalize(MEAN, STD),
            ]
        )

        def work() -> list[Tensor]:
            pictures = [Image.fromarray(array) for array in self.arrays]
            return [torch.stack([transform(p) for p in pictures]) for _ in range(2)]

        return work

    def kornia(self) -> Work:
        s = self.strength
        kernel = max(3, self.view // 10 // 2 * 2 + 1)
        blur = K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=self.blur)
        transform = torch.nn.Sequential(
            K.RandomResizedCrop((self.view, self.view), cropping_mode="resample"),
            K.RandomHorizontalFlip(),
            K.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, p=0.8),
            K.RandomGrayscale(p=0.2),
            *([blur] if self.blur else []),
            K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        )

        def work() -> list[Tensor]:
            pixels = self.images.float() / 255
            return [transform(pixels) for _ in range(2)]

        return work

    def lightly(self) -> Work:
        normalize = {"mean": list(MEAN), "std": list(STD)}
        transform = SimCLRTransform(
            self.view, cj_strength=self.strength, gaussian_blur=self.blur, normalize=normalize
        )

        def work() -> list[Tensor]:
            pairs = [transform(Image.fromarray(array)) for array in self.arrays]
            return [torch.stack(view) for view in zip(*pairs, strict=True)]

        return work


CASES = {
    "CIFAR recipe, 32 px, batch 256": Case(32, 32, 256, 0.5, 0.0),
    "the same, batch 64": Case(32, 32, 64, 0.5, 0.0),
    "ImageNet's, 256 to 224 px, with blur, batch 32": Case(256, 224, 32, 1.0, 0.5),
}

PEERS = ("torchvision", "kornia", "lightly")


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, case in CASES.items():
        work = {"ours": case.ours(), "compiled": case.ours(compiled=True)}
        work |= {peer: getattr(case, peer)() for peer in PEERS}
        times = in_turns(work, torch.device("cpu"), 11)
        for own in ("ours", "compiled"):
            ours = times[own]
            cell = f"{1e6 * ours.median / (2 * case.batch):.1f} us"
            title = name if own == "ours" else "- compiled (`--data.compiled true`)"
            rows.append([title, cell, *(_ratio(times[peer], ours) for peer in PEERS)])
    lines = [
        *table(["what", "a view of ours", *PEERS], rows),
        "",
        "Time of a peer over ours, for the same images: medians of 11 turns, and in brackets the "
        "quartiles of the peer's time over our median.",
        "",
        f"`python benchmarks/views.py`; {machine(torch.device('cpu'), 'torchvision', *PEERS[1:])}.",
    ]
    write("views-cpu", "Augmentation alone (CPU)", lines)


def _ratio(theirs: Timing, ours: Timing) -> str:
    ratio, low, high = (value / ours.median for value in theirs)
    return f"{ratio:.1f} x ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
