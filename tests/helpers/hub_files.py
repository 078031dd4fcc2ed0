"""Data sets as the library `datasets` writes them."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from noise import pixels
from PIL import Image

from simclr_pl.core.data.sources import Splits
from simclr_pl.images.datasets import load, prepare

ROOT = Path("nowhere")
NAMES = ["ant", "bee", "cat", "dog"]


def png(image: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def table(
    images: list[bytes | None], labels: list[Any] | None = None, kind: Any = None, **more: Any
) -> datasets.Dataset:
    """A column of encoded images, one of labels if there are some, and others."""
    columns = {"img": [image and {"bytes": image, "path": None} for image in images]}
    features = {"img": datasets.Image()}
    if labels is not None:
        columns["label"], features["label"] = labels, kind or datasets.ClassLabel(names=NAMES)
    for name, (values, feature) in more.items():
        columns[name], features[name] = values, feature
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def labelled(count: int = 40, *shape: int, seed: int = 0) -> datasets.Dataset:
    images = pixels(count, *(shape or (8, 9, 3)), seed=seed)
    return table([png(image) for image in images], [i % 4 for i in range(count)])


def saved(path: Path, data: Any) -> str:
    data.save_to_disk(path)
    return f"hub:{path}"


def read(given: Any, **options: Any) -> Splits:
    prepare(given, ROOT)
    return load(given, ROOT, **options)


def named(path: str, **args: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": args}
