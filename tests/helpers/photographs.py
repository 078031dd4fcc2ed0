"""Images as smooth as photographs, digits, and their files."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise whose amplitude falls as 1 / frequency, as that of photographs does, in three colours.

    Args:
        width: in pixels.
        height: in pixels.
        seed: no two are alike.
    """
    generator = np.random.default_rng(seed)
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(down, across), 1 / max(width, height)) ** 1.2
    amplitude[0, 0] = 0

    def field() -> Any:
        phase = np.exp(2j * np.pi * generator.random(amplitude.shape))
        values = np.fft.irfft2(amplitude * phase, s=(height, width))
        return values / values.std()

    light = field()
    pixels = np.stack([120 + 45 * (light + 0.35 * field()) for _ in range(3)], -1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def fill(folder: Path, count: int, first: int = 0, suffix: str = ".jpg") -> list[Path]:
    """Writes photographs of different sizes, upright and not, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03d}{suffix}" for number in range(first, first + count)]
    for number, path in enumerate(paths, first):
        width, height = 40 + 7 * (number % 5), 36 + 9 * (number % 3)
        photograph(width, height, number).save(path)
    return paths


def stored(image: Image.Image, orientation: int) -> Image.Image:
    """The image as a camera stores it that was held so."""
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # values of Image.Transpose
    if orientation == 1:
        return image
    return image.transpose(Image.Transpose(back[orientation]))


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[274] = orientation
    return found


def write_digits(folder: Path, count: int) -> None:
    """The first digits as files of several sizes, a folder a class."""
    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:count], digits.target, strict=False)):
        (folder / str(label)).mkdir(exist_ok=True)
        pixels = Image.fromarray((image * 15).astype("uint8"))
        pixels.resize((24 + i % 5, 32 - i % 7)).save(folder / str(label) / f"{i:03d}.png")
