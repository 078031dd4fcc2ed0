"""Reading checkpoints: what this package writes into one, and the encoder in it."""

import os
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import Choice, Door
from simclr_pl.core.model.encoder import EncoderSpec, Stem, build_encoder, chosen_encoder
from simclr_pl.core.model.geometry import Geometry
from simclr_pl.core.paths import expanded

KEY = "simclr_pl"
"""Where a checkpoint keeps what is ours: format, the encoder's spec, the data's statistics."""

FORMAT = 1
"""Raised when a checkpoint of today could no longer be read by yesterday's code."""

_UNREADABLE = (
    "{} cannot be read: it is truncated, or not a checkpoint. "
    "Use another checkpoint of the run, or copy the file again"
)

INCOMPLETE = (
    "{} lacks {}: something has changed it since it was written. Use another checkpoint of the "
    "run, or copy the file again"
)

_DESCRIBED = ("encoder", "image_size", "mean", "std")
"""What `checkpoint[KEY]` holds in every version."""

_IS_FOLDER = 0x10
"""An attribute in a zip file's table, as MS-DOS had it."""


def read_checkpoint(path: str | Path, *, device: str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint of this package, without executing anything in it (`weights_only`).

    Args:
        path: a training checkpoint or an exported encoder.
        device: where its tensors go.

    Returns:
        The checkpoint; `checkpoint[KEY]` describes it.

    Raises:
        UserError: no such file, a truncated or damaged one, another program's, or a newer format.
    """
    path = expanded(path)
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}: give the path of a .ckpt file of a run")
    check_whole(path)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # of bytes that are no pickle, torch raises anything
        raise UserError(_UNREADABLE.format(path)) from error
    describe(checkpoint, str(path))
    return checkpoint


def check_whole(path: Any) -> None:
    """Compares the file's records with the checksums (CRC-32) in it, which torch doesn't look at.

    A file is read for that once a process, in a third of a second a gigabyte.

    Args:
        path: a file written by `torch.save`; an address or an open file is left unchecked.

    Raises:
        UserError: a checksum differs, or the file has none because it is no such file.
    """
    if not isinstance(path, str | os.PathLike) or not Path(path).is_file():
        return
    about = Path(path).stat()
    try:
        name = _first_damaged(str(path), about.st_ino, about.st_size, about.st_mtime_ns)
    except Exception as error:  # of bytes that are no zip file, zipfile raises anything
        raise UserError(_UNREADABLE.format(path)) from error
    if name:
        raise UserError(
            f"{path} is damaged: its record {name} is no longer as it was written (by its "
            "checksum). Use another checkpoint of the run, or copy the file again"
        )


@lru_cache(maxsize=64)
def _first_damaged(path: str, inode: int, size: int, changed: int) -> str | None:
    """The first record that isn't as it was written, of a file of this identity, size and age."""
    with zipfile.ZipFile(path) as file:
        # One flipped bit makes a record a folder, for which torch reads whatever memory holds.
        folders = [about.filename for about in file.infolist() if about.external_attr & _IS_FOLDER]
        return folders[0] if folders else file.testzip()


def description(spec: EncoderSpec, geometry: Geometry, seed: int) -> dict[str, Any]:
    """What a checkpoint is to say of itself, for `checkpoint[KEY]`: plain values only.

    Args:
        spec: of the encoder as it was built.
        geometry: of the images that it was last trained on.
        seed: of the training.
    """
    channels, size, mean, std, bounds = geometry
    spec = spec._replace(channels=channels, image_size=size)
    images = {"image_size": size, "mean": mean, "std": std, "range": bounds}
    return {"format": FORMAT, "seed": seed, "encoder": spec._asdict(), **images}


def describe(checkpoint: Any, source: str) -> dict[str, Any]:
    """What a checkpoint says of itself: `checkpoint[KEY]`.

    Raises:
        UserError: another program's checkpoint, or a format that this version doesn't know.
    """
    about: Any = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(about, dict):
        raise UserError(f"{source} is not a checkpoint of simclr_pl: give a .ckpt file of a run")
    if about.get("format") != FORMAT:
        raise UserError(
            f"{source} has format {about.get('format')}, and this version of simclr_pl reads "
            f"format {FORMAT}: install the version that wrote it"
        )
    spec, weights = about.get("encoder"), checkpoint.get("state_dict")
    lacking = [f"{KEY}.{name}" for name in _DESCRIBED if about.get(name) is None]
    named = EncoderSpec._fields if spec is not None else ()
    lacking += [f"{KEY}.encoder.{n}" for n in named if not isinstance(spec, dict) or n not in spec]
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        lacking.append("state_dict")
    if lacking:
        raise UserError(INCOMPLETE.format(source, ", ".join(lacking)))
    return about


def check_stem(about: dict[str, Any], built: EncoderSpec, source: str) -> None:
    """Whether a checkpoint's encoder has the same stem: two may differ in their stride alone.

    Older checkpoints leave a stem at `auto`, to be worked out from their own size.

    Args:
        about: from `describe`.
        built: the encoder that is there.
        source: what to call the checkpoint.

    Raises:
        UserError: another stem.
    """
    stem = stem_in(about)
    if stem != built.stem:
        raise UserError(
            f"the encoder in {source} has the stem '{stem}', and this model's has '{built.stem}': "
            f"give model.stem {stem}"
        )


def stem_in(about: dict[str, Any]) -> Stem:
    """The stem of a checkpoint's encoder, never `auto`."""
    spec = EncoderSpec(**about["encoder"])
    with torch.random.fork_rng(devices=[]):
        return spec.stem if spec.stem != "auto" else build_encoder(spec).spec.stem


def load_encoder(path: str | Path, *, encoder: Door | None = None) -> nn.Module:
    """The pretrained encoder of a training checkpoint or an exported file, ready for use.

    Nothing in the file is executed (`weights_only`). The encoder expects images as it was trained
    on: floats in [0, 1], normalised by the attributes `mean` and `std` that it carries (tuples, one
    number a channel), with the side `image_size`. Where its attribute `range` is (low, high), these
    numbers of an image are 0 and 1, and numbers beyond are clipped; `None`: 8 bits.

    Args:
        path: `RUN/checkpoints/last.ckpt`, or an exported file.
        encoder: the class (or its class path) of an encoder of one's own, which the file alone
            does not make this package import; or a module, which gets the weights.

    Returns:
        A module in eval mode, float images `[B, C, H, W]` to features `[B, D]`, on the CPU.

    Raises:
        UserError: as `read_checkpoint`, and for weights that don't fit the architecture named
            there.
    """
    checkpoint = read_checkpoint(path)
    about = checkpoint[KEY]
    module = build_encoder(EncoderSpec(**about["encoder"]), handed_over(encoder)).module
    fit_weights(module, below("encoder.", checkpoint), str(path))
    for name in ("mean", "std", "image_size", "range"):
        setattr(module, name, about.get(name))
    return module.eval()


def handed_over(encoder: Door | None) -> Choice | None:
    """What makes an encoder of the caller's own; `None` for one of the libraries."""
    return None if encoder is None else chosen_encoder(encoder)


def below(prefix: str, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Weights of a part of the model, by the names that they have in it."""
    weights = checkpoint["state_dict"]
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def fit_weights(module: nn.Module, weights: dict[str, Any], source: str) -> None:
    """Loads weights that must fit exactly.

    Raises:
        UserError: as `check_weights`.
    """
    check_weights(module, weights, source)
    module.load_state_dict(weights)


def check_weights(module: nn.Module, weights: dict[str, Any], source: str) -> None:
    """Whether weights fit exactly.

    Raises:
        UserError: names the first parameter that is missing, unexpected or of another shape.
    """
    here, there = (
        {name: f"{[*weight.shape]}" for name, weight in tensors.items()}
        for tensors in (module.state_dict(), weights)
    )
    for name in {**here, **there}:
        if here.get(name) != there.get(name):
            raise UserError(
                f"{source} holds another architecture: '{name}' is {there.get(name, 'absent')} "
                f"there and {here.get(name, 'absent')} here. Use the configuration that wrote it"
            )
