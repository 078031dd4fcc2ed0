"""What a model is made of: what its doors name, and its network, with weights from a seed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import Choice, Door, is_class_path, lookup
from simclr_pl.core.model.encoder import EncoderSpec, Stem, build_encoder, chosen_encoder
from simclr_pl.core.model.geometry import Geometry
from simclr_pl.core.model.objective import Sizes
from simclr_pl.core.model.projector import build_projector

FROM_FILE: ContextVar[frozenset[str] | None] = ContextVar("FROM_FILE", default=None)
"""While a model is made of a file's recipe: the arguments that the caller gives beside it."""


def choose(key: str, given: Door, table: Mapping[str, str] | None = None) -> Choice:
    """What a door was given; a class that a file alone names is left where it is.

    Raises:
        UserError: as `lookup`.
    """
    handed = FROM_FILE.get()
    if handed is None or key in handed or not is_class_path(given):
        return chosen_encoder(given) if table is None else lookup(given, table, f"model.{key}")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise UserError(
            f"the checkpoint's {key} is {given}, a class that is imported for its owner alone: "
            f"hand it over, as in load_from_checkpoint(path, {key}=...)"
        )

    if key in ("encoder", "objective"):
        refuse()
    return Choice(str(given), refuse, {})


@contextmanager
def initialising(seed: int) -> Iterator[None]:
    """A context in which weights are float32 numbers of the CPU's generator, begun with a seed.

    (Lightning builds with the accelerator and the run's precision as defaults.)
    """
    dtype = torch.get_default_dtype()
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.set_default_dtype(torch.float32)
        try:
            torch.manual_seed(seed)
            yield
        finally:
            torch.set_default_dtype(dtype)


def build_network(model: Any, geometry: Geometry, stem: Stem = "auto") -> None:
    """Makes the network of a `SimCLR`, and has its objective make what it needs.

    An encoder or projector that somebody has set on the model before stays as it is.

    Args:
        model: with its hyperparameters, seed and objective; gets `projector` (features to
            projections `[B, P]`), `encoder` (images `[B, C, S, S]` to features `[B, D]`), `spec`
            (what rebuilds the encoder), `stem_built` (in words), `geometry`, and `pretrained`:
            what the recipe says of its library's weights, which are no architecture.
        geometry: of the images.
        stem: where the hyperparameters leave it open.

    Raises:
        UserError: as `build_encoder` and `build_projector`.
    """
    hparams, size = model.hparams, (geometry.channels, geometry.image_size)
    own = chosen_encoder(model.encoder) if hasattr(model, "encoder") else model.given_encoder
    stem = stem if hparams["stem"] == "auto" else hparams["stem"]
    args = {**own.args, **(hparams["encoder_args"] or {})}
    dtype = torch.get_default_dtype()
    with initialising(model.seed):
        encoder = build_encoder(EncoderSpec(own.name, *size, stem, args), own)
        projector = getattr(model, "projector", None) or build_projector(
            encoder.width,
            hparams["projector_layers"],
            hparams["projector_hidden"],
            hparams["projection_dim"],
        )
        if (build := getattr(model.objective, "build", None)) is not None:
            build(Sizes(encoder.width, hparams["projection_dim"], *size))
    # In the run's precision at once: Lightning loads a checkpoint before it converts modules, which
    # would round float64 weights. Convolutions are up to 1.6 times faster in channels last, on CPU
    # and GPU; the numbers are the same.
    if isinstance(model.objective, nn.Module):
        model.objective.to(dtype)
    # Optimisers in checkpoints know parameters by this order.
    model.projector = projector.to(dtype)
    model.encoder = encoder.module.to(dtype).to(memory_format=torch.channels_last)
    model.spec, model.stem_built, model.geometry = encoder.spec, encoder.stem, geometry
    model.pretrained = args["pretrained"] if args.keys() - encoder.spec.args else None
