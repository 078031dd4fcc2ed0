"""Features of crop-and-flip views of the training split, anew in each epoch."""

import torch
from torch import Tensor, nn

from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.errors import UserError
from simclr_pl.protocols.features import in_eval_mode


@torch.no_grad()
def encode_crops(
    encoder: nn.Module, data: ContrastiveDataModule, rows: Tensor, epoch: int
) -> Tensor:
    """Encodes one view of each of those training images, with a frozen encoder in eval mode.

    Args:
        encoder: `float [B, C, S, S]` to `[B, D]`.
        data: a data module that has been set up; what its views do is what is done.
        rows: `int64 [N]`, places in the training split.
        epoch: which of the endless views; the same epoch gives the same ones.

    Returns:
        `[N, D]`, on the encoder's device.

    Raises:
        UserError: a file that cannot be read.
    """
    device = next(encoder.parameters()).device
    source = data.evaluation_loader("train", "views").source
    features = []
    with in_eval_mode(encoder):
        for batch in source.batches(rows.split(data.batch_size), epoch, "views"):
            moved = batch.to(device)
            views = data.views.one(moved.images, moved.index, epoch, moved.sizes)
            features.append(encoder(views))
    whole = torch.cat(features)
    if len(whole) < len(rows):
        raise UserError(
            f"{len(rows) - len(whole)} images of train cannot be read, and crops are made of all: "
            f"remove those that python -m simclr_pl pack {data.root} --check lists"
        )
    return whole
