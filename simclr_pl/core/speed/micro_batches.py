"""A large batch through the encoder in parts, in the memory of one part (gradient caching).

The loss needs every projection of a batch at once, but not every activation. So each part goes
through the encoder without keeping its activations, projector and loss see all features together,
and in backward each part goes through the encoder again just before its gradient is needed: one
more forward pass buys a batch of any size (Gao et al. 2021, "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup"; here by rematerialisation, so that optimisation, clipping
and the reduction over ranks remain those of one ordinary step).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from simclr_pl.core.batch import Batch


def encode_in_parts(
    encoder: nn.Module, parts: Sequence[Batch], images: Callable[[Batch], Tensor]
) -> Tensor:
    """Features of all parts, as if they had gone through the encoder together.

    That is so to rounding for an encoder without batch norm. Batch norm normalises each part by the
    part's own statistics; its running ones move once, by the mean over parts of what each part
    alone would have moved them (variances are unbiased, so their mean estimates what the whole
    batch's would).

    Args:
        encoder: images `[VB, C, S, S]`, first views before second ones, to features `[VB, D]`.
        parts: what the images are made of; on every rank as many.
        images: makes a part's; the same ones when it is called again in backward.

    Returns:
        `[VB, D]` over all parts, again first views before second ones.
    """
    # Where each part begins: in its second pass too, when the encoder's own have moved on.
    start = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    moves = {name: torch.zeros_like(buffer) for name, buffer in start.items()}
    dtype = torch.get_default_dtype()

    def encode(part: Batch) -> Tensor:
        own = {name: buffer.clone() for name, buffer in start.items()}
        features: Tensor = functional_call(encoder, own, (images(part),))
        # (In backward nobody asks any longer for the moves.)
        for name, end in own.items():
            if end.is_floating_point():
                # Constants may be infinite, which is no way to go.
                moves[name] += torch.where(end == start[name], 0, end - start[name])
            else:  # a counter, or a flag: each part does the same to it
                moves[name] = end
        return features

    # Of the part's tensors checkpoint learns on which device dropout has to draw the same again.
    features = [
        checkpoint(
            encode,
            part,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _default_dtype(dtype)),
        )
        for part in parts[:-1]
    ]
    # The last one keeps its activations: backward begins with it.
    features.append(encode(parts[-1]))
    for name, buffer in encoder.named_buffers():
        if buffer.is_floating_point():
            buffer.add_(moves[name] / len(parts))
        else:
            buffer.copy_(moves[name])
    views = (made.split(len(part.labels)) for made, part in zip(features, parts, strict=True))
    return torch.cat([rows for view in zip(*views, strict=True) for rows in view])


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """A run's precision is torch's default in its steps, but no longer in their backward."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
