"""Weights by name: files of this package, of torchvision, timm and others, and downloaded ones."""

import difflib
import logging
import pickle
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from simclr_pl.core.errors import UserError
from simclr_pl.core.model.checkpoint import KEY, check_whole, describe
from simclr_pl.core.paths import expanded

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys below which files of other programs keep a state dict."""

_LIBRARY = re.compile(r"(torchvision|timm):(.+)", re.DOTALL)

_ZIP = b"PK\x03\x04"
"""How a file of today's `torch.save` begins; older ones are bare pickles, without checksums."""


class Weights(NamedTuple):
    """Tensors of a network, as they were found.

    Attributes:
        name: what to call them: the file, or the library's name and which of its weights.
        tensors: by name.
        ours: the checkpoint that they are from, where this package wrote it.
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
    named = _LIBRARY.fullmatch(source)
    if named is not None:
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
    """What a file holds, on the CPU."""
    damaged = (
        f"{path} cannot be read: it is truncated, or holds no weights. Copy the file again, or "
        "give another checkpoint"
    )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with path.open("rb") as file:
            zipped = file.read(len(_ZIP)) == _ZIP
        if zipped:
            check_whole(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise UserError(damaged) from error
        raise UserError(
            f"{path} cannot be read: it holds Python objects beside its tensors, and they are not "
            "executed (weights_only): where you trust the file, save its state dict alone and give "
            "that"
        ) from error
    except Exception as error:  # of bytes that are no pickle, torch raises anything
        raise UserError(damaged) from error


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


# Of libraries -------------------------------------------------------------------------------------


def published_weights(library: str, name: str, args: dict[str, Any] | None = None) -> Weights:
    """Pretrained weights that a library downloads, once, into its own cache.

    Args:
        library: torchvision or timm.
        name: of the network, with `.TAG` for other weights than the library's default.
        args: of its constructor, to which timm fits some weights (`img_size`).

    Raises:
        UserError: an unknown name, a network without pretrained weights; no internet.
    """
    return (_of_torchvision if library == "torchvision" else _of_timm)(name, args or {})


def _of_torchvision(name: str, args: dict[str, Any]) -> Weights:
    from torchvision import models

    name, _, tag = name.partition(".")
    if name not in models.list_models(module=models):
        raise _unknown("torchvision", name, models.list_models(module=models))
    table = models.get_model_weights(name)
    tags = [*table.__members__]
    if tag and tag not in tags:
        raise _unknown(f"torchvision:{name}.", tag, tags)
    chosen = table[tag] if tag else table.DEFAULT
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    tensors = _fetched(
        f"torchvision:{name}",
        chosen.url,
        f"put it into {folder}, or give",
        lambda: chosen.get_state_dict(map_location="cpu", check_hash=True, weights_only=True),
    )
    return Weights(f"torchvision:{name} ({chosen.name})", tensors)


def _of_timm(name: str, args: dict[str, Any]) -> Weights:
    import timm  # late: it takes seconds

    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    known = {n.partition(".")[2] for n in timm.list_pretrained(f"{name.partition('.')[0]}.*")}
    tag = name.partition(".")[2]
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
            network = timm.create_model(name, pretrained=True, **args)
        return dict(network.state_dict())

    tensors = _fetched(f"timm:{name}", address, "give", build)
    return Weights(f"timm:{name.partition('.')[0]} ({about.tag})", tensors)


def _fetched(
    name: str, address: str, keep: str, fetch: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What a library downloads, or has in its cache."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)  # it tells of each of its ten attempts
    try:
        return fetch()
    except OSError as error:
        raise UserError(
            f"the weights of {name} could not be fetched ({_short(error)}): where there is no "
            f"internet, fetch {address} elsewhere, and {keep} the file in place of the name"
        ) from error
    except Exception as error:  # of weights that don't fit, libraries raise anything
        raise UserError(
            f"the weights of {name} cannot be used ({_short(error)}): give a file of weights, and "
            "no model.encoder_args that make it another network"
        ) from error
    finally:
        hub.setLevel(level)


def _short(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")


def _unknown(library: str, name: str, known: list[str]) -> UserError:
    near = difflib.get_close_matches(name, known, 3) or known[:3]
    return UserError(f"{library} knows no '{name}': did you mean {' or '.join(near)}?")
