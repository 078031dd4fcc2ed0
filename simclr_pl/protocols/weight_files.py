"""Weights by name: files of this package, of torchvision, timm and others, and downloaded ones."""

import difflib
import logging
import pickle
import re
import textwrap
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simclr_pl.core.errors import UserError, in_one_line
from simclr_pl.core.model.checkpoint import KEY, check_whole, describe
from simclr_pl.core.paths import expanded

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys below which files of other programs keep a state dict."""

_LIBRARY = re.compile(r"(torchvision|timm):(.+)", re.DOTALL)

_DAMAGED = "it is truncated, or holds no weights. Copy the file again, or give another checkpoint"
_OBJECTS = (
    "it holds Python objects beside its tensors, and they are not executed (weights_only): where "
    "you trust the file, save its state dict alone and give that"
)


class Weights(NamedTuple):
    """Tensors of a network, under the names that they have in their file.

    Attributes:
        name: the file, or the library's name and the tag of its weights.
        tensors: by name.
        ours: the whole checkpoint, where this package wrote the file.
    """

    name: str
    tensors: dict[str, Tensor]
    ours: dict[str, Any] | None = None


def is_library_name(source: str) -> bool:
    """Whether that is `torchvision:NAME` or `timm:NAME`."""
    return _LIBRARY.fullmatch(source) is not None


def read_weights(source: str) -> Weights:
    """Reads weights without executing anything in a file (`weights_only`).

    Args:
        source: a checkpoint of this package; a state dict of any program that `torch.save` or
            safetensors wrote; `torchvision:NAME` or `timm:NAME`, with `.TAG` behind it for other
            weights than the library's default.

    Raises:
        UserError: no such file or name, a file that cannot be read or holds no tensors, a
            checkpoint of another format; no internet.
    """
    if named := _LIBRARY.fullmatch(source):
        return published_weights(named[1], named[2])
    path = expanded(source)
    if not path.is_file():
        raise UserError(
            f"there is no checkpoint at {path}: give a .ckpt file of a run, a state dict (.pth, "
            ".safetensors), torchvision:NAME or timm:NAME"
        )
    content = _content(path)
    if isinstance(content, Mapping) and KEY in content:
        describe(content, str(path))
        return Weights(str(path), content["state_dict"], dict(content))
    return Weights(str(path), _state_dict(content, path))


def _content(path: Path) -> Any:
    """Returns the deserialised file, with tensors on the CPU."""
    if zipfile.is_zipfile(path):  # files of older torch are bare pickles, without checksums
        check_whole(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of bytes that are no pickle, torch raises anything
        objects = isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)
        raise UserError(f"{path} cannot be read: {_OBJECTS if objects else _DAMAGED}") from error


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors in a file of another program: at its top, or below one of `WRAPPERS`."""
    keys = list(content) if isinstance(content, Mapping) else []
    for inner in [*(content[key] for key in WRAPPERS if key in keys), content]:
        if isinstance(inner, Mapping):
            tensors = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}
            if tensors:
                return tensors
    there = f"its keys are {', '.join(map(str, keys[:5]))}" if keys else "it has no keys"
    raise UserError(
        f"{path} holds no weights, and is not a checkpoint of simclr_pl: give a .ckpt file of a "
        f"run, or a state dict, alone or below {', '.join(WRAPPERS)} ({there})"
    )


def check_finite(tensors: Iterable[Tensor], source: str) -> None:
    """Checks weights before they are loaded.

    Raises:
        UserError: numbers that are not finite.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise UserError(
            f"{source} has weights that are not finite (NaN or infinity): use an earlier "
            "checkpoint, or another file"
        )


# Of libraries -------------------------------------------------------------------------------------


class _Published(NamedTuple):
    """Weights that a library can download.

    Attributes:
        name: the library, the network, and the tag of its weights.
        address: of the file, for a person who fetches it on another machine.
        remedy: what that person does with the file, in words.
        fetch: downloads the weights, or finds them in the library's cache.
    """

    name: str
    address: str
    remedy: str
    fetch: Callable[[], Mapping[str, Any]]


def published_weights(library: str, name: str, args: dict[str, Any] | None = None) -> Weights:
    """Pretrained weights that a library downloads, once, into its own cache.

    Args:
        library: torchvision or timm.
        name: of the network, with `.TAG` for other weights than the library's default.
        args: of the network's constructor, to which timm fits some weights (`img_size`).

    Raises:
        UserError: an unknown name, a network without pretrained weights; no internet.
    """
    found = _of_torchvision(name) if library == "torchvision" else _of_timm(name, args or {})
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # it logs each of its ten attempts
    try:
        return Weights(found.name, dict(found.fetch()))
    except Exception as error:  # of weights that don't fit, libraries raise anything
        said = textwrap.shorten(in_one_line(error), 160, placeholder=" ...")
        trouble = (
            f"could not be fetched ({said}): where there is no internet, fetch {found.address} "
            f"elsewhere, and {found.remedy} the file in place of the name"
            if isinstance(error, OSError)
            else f"cannot be used ({said}): give a file of weights, and no model.encoder_args that "
            "make it another network"
        )
        raise UserError(f"the weights of {library}:{name} {trouble}") from error
    finally:
        hub.setLevel(level)


def _of_torchvision(name: str) -> _Published:
    from torchvision import models

    name, _, tag = name.partition(".")
    if name not in models.list_models(module=models):
        raise _unknown("torchvision", name, models.list_models(module=models))
    table = models.get_model_weights(name)
    if tag and tag not in table.__members__:
        raise _unknown(f"torchvision:{name}.", tag, [*table.__members__])
    chosen = table[tag] if tag else table.DEFAULT
    return _Published(
        f"torchvision:{name} ({chosen.name})",
        chosen.url,
        f"put it into {Path(torch.hub.get_dir()) / 'checkpoints'}, or give",
        lambda: chosen.get_state_dict(map_location="cpu", check_hash=True, weights_only=True),
    )


def _of_timm(name: str, args: dict[str, Any]) -> _Published:
    import timm  # late: it takes seconds

    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    network, _, tag = name.partition(".")
    known = {n.partition(".")[2] for n in timm.list_pretrained(f"{network}.*")}
    if not known or (tag and tag not in known):
        raise UserError(
            f"timm has no pretrained weights of {name}"
            + (f", but of {', '.join(sorted(known))}: give one of them" if known else "")
        )
    about: Any = timm.get_pretrained_cfg(name)
    address = str(about.url)
    if about.hf_hub_id:
        address = f"https://huggingface.co/{about.hf_hub_id}/resolve/main/model.safetensors"

    def build() -> dict[str, Tensor]:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            return dict(timm.create_model(name, pretrained=True, **args).state_dict())

    return _Published(f"timm:{network} ({about.tag})", address, "give", build)


def _unknown(library: str, name: str, known: list[str]) -> UserError:
    near = difflib.get_close_matches(name, known, 3) or known[:3]
    return UserError(f"{library} knows no '{name}': did you mean {' or '.join(near)}?")
