"""A large batch through the encoder in parts, in the memory of one part (gradient caching).

The loss needs every projection of a batch at once, but not every activation. So each part goes
through the encoder without keeping its activations, projector and loss see all features together,
and in backward each part goes through the encoder again just before its gradient is needed: one
more forward pass buys a batch of any size (Gao et al. 2021, "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup"; here by rematerialisation, so that optimisation, clipping
and the reduction over ranks remain those of one ordinary step).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from simclr_pl.batch import Batch


def encode_in_parts(
    encoder: nn.Module, parts: Sequence[Batch], images: Callable[[Batch], Tensor]
) -> Tensor:
    """Features of all parts, as if they had gone through the encoder together.

    That is so to rounding for an encoder without batch norm. Batch norm normalises each part by the
    part's own statistics; its running ones move once, by the mean over parts of what each part
    alone would have moved them (variances are unbiased, so their mean estimates what the whole
    batch's would).

    Args:
        encoder: images `[2B, C, S, S]`, first views before second ones, to features `[2B, D]`.
        parts: what the images are made of; on every rank as many.
        images: makes a part's; the same ones when it is called again in backward.

    Returns:
        `[2B, D]` over all parts, again first views before second ones.
    """
    buffers = dict(encoder.named_buffers())
    moves = {name: torch.zeros_like(buffer) for name, buffer in buffers.items()}
    seen = set()

    def encode(number: int, part: Batch) -> Tensor:
        # On copies: each part sees the buffers where they stood, and so does its second pass.
        own = {name: buffer.clone() for name, buffer in buffers.items()}
        features: Tensor = functional_call(encoder, own, (images(part),))
        if number not in seen:  # else it is the pass in backward, which leaves no trace
            seen.add(number)
            for name, move in moves.items():
                move.add_(own[name] - buffers[name])
        return features

    # Of the part's tensors checkpoint learns on which device dropout has to draw the same again.
    features = [
        checkpoint(encode, number, part, use_reentrant=False)
        for number, part in enumerate(parts[:-1])
    ]
    # The last one keeps its activations: backward begins with it.
    features.append(encode(len(parts) - 1, parts[-1]))
    for name, buffer in buffers.items():
        # A counter is moved by one in each part, and so by one in the mean.
        buffer.add_((moves[name] / len(parts)).to(buffer.dtype))
    first, second = zip(*(part.chunk(2) for part in features), strict=True)
    return torch.cat([*first, *second])
