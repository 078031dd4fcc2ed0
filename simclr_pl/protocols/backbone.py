"""The network below a classifier: a checkpoint's encoder, and layers of its projection head."""

from typing import Any, NamedTuple

import torch
from torch import nn

from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import Door
from simclr_pl.core.model.checkpoint import KEY, below, fit_weights, handed_over
from simclr_pl.core.model.encoder import EncoderSpec, build_encoder
from simclr_pl.core.model.projector import build_projector
from simclr_pl.protocols.weight_files import check_finite


class Backbone(NamedTuple):
    """A network that a classifier can be put on.

    Attributes:
        encoder: images `[B, C, S, S]` to features.
        projector: the first layers of the projection head, or none of them.
        width: of the features behind both.
        spec: rebuilds the encoder.
    """

    encoder: nn.Module
    projector: nn.Sequential
    width: int
    spec: EncoderSpec


def load_backbone(
    checkpoint: dict[str, Any],
    source: str,
    projector_layers: int = 0,
    fresh: int | None = None,
    encoder: Door | None = None,
) -> Backbone:
    """The encoder of a checkpoint, with layers of the projection head that was trained on it.

    Source: SimCLR v2 (Chen et al. 2020), section 2: fine-tuning from a middle layer of the head.

    Args:
        checkpoint: from `read_checkpoint`.
        source: the checkpoint's name, for errors.
        projector_layers: of the head, each with its batch norm (and ReLU, where it has one).
        fresh: a seed: the same architecture with weights from this seed, instead of the trained.
        encoder: as `load_encoder` takes it.

    Raises:
        UserError: weights that don't fit or are no numbers; no such layer of the head.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if fresh is None else fresh)
        about = EncoderSpec(**checkpoint[KEY]["encoder"])
        module, width, _, spec = build_encoder(about, handed_over(encoder))
        projector = _projector(checkpoint, source, width, projector_layers)
    if fresh is None:
        fit_weights(module, below("encoder.", checkpoint), source)
        if projector_layers:
            fit_weights(projector, below("projector.", checkpoint), source)
    kept = projector[:projector_layers]
    check_finite([*module.state_dict().values(), *kept.state_dict().values()], source)
    if projector_layers:
        width = len(kept[-1].get_parameter("0.weight"))
    return Backbone(module, kept, width, spec)


def _projector(checkpoint: dict[str, Any], source: str, width: int, wanted: int) -> nn.Sequential:
    """The whole head with fresh weights, where a part of it is wanted."""
    if wanted == 0:
        return nn.Sequential()
    hparams = checkpoint.get("hyper_parameters") or {}
    names = ("projector_layers", "projector_hidden", "projection_dim")
    if not all(name in hparams for name in names):
        raise UserError(
            f"from_projector_layer is {wanted}, but {source} holds no projection head: "
            "give the training checkpoint of a pretraining, or 0 for the encoder alone"
        )
    layers = hparams["projector_layers"]
    if not 0 < wanted <= layers:
        raise UserError(
            f"from_projector_layer is {wanted}, but the projection head in {source} has {layers} "
            f"layers: give 1 to {layers}, or 0 for the encoder alone"
        )
    return build_projector(width, *(hparams[name] for name in names))
