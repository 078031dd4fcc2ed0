"""NT-Xent, the loss of SimCLR (Chen et al. 2020, equation 1), over all ranks, in blocks.

With N images there are 2N projections z, normalised to length one. For anchor i, whose positive is
the other view p of the same image, with similarities s_ij = z_i·z_j / temperature:

    loss_i = -log( exp(s_ip) / sum_{j != i} exp(s_ij) )
           = softplus( logsumexp_{j not in {i, p}} s_ij - s_ip )

The second line is what is computed: with the positive kept out of the sum, nothing cancels when it
dominates, which at temperature 0.05 is what trained representations do. The loss is the mean over
all 2N anchors.

Its gradient with respect to z_i, where c_i = sigmoid(logsumexp_i - s_ip) and
w_ij = c_i exp(s_ij - logsumexp_i) for negatives j, w_ip = -c_i for the positive, is

    d(2N loss)/dz_i = sum_j (w_ij + w_ji) z_j / temperature

w_ij for the anchor's own term, w_ji because z_i is a column of the others'. Both need of another
rank only its projections and one number an anchor, which the forward pass has gathered: backward
needs no communication. No similarity is kept for it, unless the batch is so small that all of them
fit one block: blocks of rows and columns are made again instead, so that memory is linear in the
batch. On one rank the matrix is symmetric: a block above the diagonal serves the one below as well.

Similarities are bounded by 1 / temperature, so that their exponentials and sums fit float32 without
a running maximum down to a temperature of 1/70; below that the work is done in float64.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from simclr_pl.core.distributed import gather_rows, rank_and_world, row_counts
from simclr_pl.core.errors import UserError, check
from simclr_pl.core.model.precision import full_precision

_LARGEST_EXPONENT = 70.0
"""exp(70) x 10^8 anchors is still a float32."""


_SMALLEST_TEMPERATURE = 1 / 700
"""exp(700) x 10^4 is still a float64."""

_SMALLEST_LENGTH = 1e-12
"""A projection shorter than this (all zeros) is not stretched to length one."""


class AnchorStatistics(NamedTuple):
    """What the blocks know of each of this rank's anchors, first views before second ones.

    Attributes:
        positive_rank: `int64 [2B]`, how many negatives are as near to the anchor as its positive
            or nearer: ties, to rounding, count against it, so that collapsed projections don't look
            like hits; and so does what is no number.
        log_sum: `[2B]`, log-sum-exp over negatives of similarity / temperature.
    """

    positive_rank: Tensor
    log_sum: Tensor


class NTXentLoss(nn.Module):
    """NT-Xent over the global batch.

    With several ranks every anchor is compared with the projections of all of them, which are
    gathered here; ranks may hold different numbers of rows. The mean of the returned scalar over
    ranks is the loss of the concatenated batch, and the gradient that DDP averages is that loss's
    gradient. (This supposes that every rank calls `backward` with the same factor, as DDP and loss
    scaling do.)

    Source: Chen et al. 2020, section 2.1 and equation 1; google-research/simclr `objective.py`.

    Args:
        temperature: divides cosine similarities; above 0.
        block_size: side of the square blocks of the similarity matrix, in rows; memory grows with
            its square, results don't depend on it but for rounding.

    Raises:
        UserError: a temperature or block size that is not positive.
    """

    def __init__(self, temperature: float = 0.5, block_size: int = 512) -> None:
        super().__init__()
        usual = "above 0 (0.1 to 0.5 is usual), and above 1/700, where float64 ends"
        check(temperature > _SMALLEST_TEMPERATURE, "temperature", temperature, usual)
        check(block_size >= 1, "block_size", block_size, "at least 1 row")
        self.temperature, self.block_size = temperature, block_size

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of two views' projections.

        Args:
            z1: `[B, P]`, projections of the first views, not normalised.
            z2: `[B, P]`, projections of the second views, row for row of the same images.

        Returns:
            Scalar, float32 (float64 for float64 input), also under autocast, and computed in full
            float32 whatever `torch.set_float32_matmul_precision` says (unless somebody compiles
            the loss itself).
        """
        return self._compute(z1, z2, None, count=False)[0]

    def with_statistics(
        self, z1: Tensor, z2: Tensor, counts: Sequence[int] | None = None
    ) -> tuple[Tensor, AnchorStatistics]:
        """The loss as `forward` gives it, and what its blocks know of each anchor.

        Args:
            z1: `[B, P]`, as `forward` takes it.
            z2: `[B, P]`, likewise.
            counts: images of each rank, where all of them know that: else they are asked for it,
                and the host waits for an accelerator's answer.
        """
        return self._compute(z1, z2, counts, count=True)

    def _compute(
        self, z1: Tensor, z2: Tensor, counts: Sequence[int] | None, *, count: bool
    ) -> tuple[Tensor, AnchorStatistics]:
        if z1.shape != z2.shape or z1.dim() != 2:
            raise ValueError(
                f"projections must be two [B, P] tensors, not {[*z1.shape]}, {[*z2.shape]}"
            )
        me, world = rank_and_world()
        if counts is not None and (len(counts) != world or counts[me] != len(z1)):
            raise ValueError(f"{len(z1)} images on rank {me} of {world} are not those of {counts}")
        about = self.temperature, self.block_size, count
        with torch.autocast(z1.device.type, enabled=False), full_precision():
            loss, rank, log_sum = _NTXent.apply(z1, z2, counts, *about)
        dtype = torch.promote_types(z1.dtype, torch.float32)
        return loss.to(dtype), AnchorStatistics(rank, log_sum.to(dtype))

    def extra_repr(self) -> str:
        """What `print` shows of the module."""
        return f"temperature={self.temperature}, block_size={self.block_size}"


class _Blocks:
    """The similarity matrix of this rank's 2B anchors to all 2N projections, a block at a time."""

    def __init__(self, rows: int, counts: list[int], size: int, temperature: float) -> None:
        self.half = rows // 2
        self.few = rows * sum(counts) <= size**2
        """All of them together are no more than one may be: forward's serve backward as well."""
        self.temperature = temperature
        self.offset = sum(counts[: rank_and_world()[0]])  # this rank's first column
        self.symmetric = len(counts) == 1
        # No row block holds both views, so that its positives lie on one diagonal.
        self.rows = _ranges(0, self.half, size) + _ranges(self.half, rows, size)
        self.columns = self.rows if self.symmetric else _ranges(0, sum(counts), size)

    def visit(self, z: Tensor, everyone: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns and `negatives` of each block: with symmetry, not of those below another.

        Args:
            z: `[2B, P]`, this rank's projections, of length one.
            everyone: `[2N, P]`, those of all ranks.
        """
        for r in self.rows:
            for c in self.columns:
                if not (self.symmetric and c < r):
                    rows, columns = slice(*r), slice(*c)
                    yield rows, columns, self._negatives(z[rows], everyone[columns], r[0], c[0])

    def _negatives(self, rows: Tensor, columns: Tensor, top: int, left: int) -> Tensor:
        """exp(similarity / temperature), but 0 for an anchor's self and its positive."""
        block = rows.new_empty(rows.shape[0], columns.shape[0])
        block.addmm_(rows, columns.T, beta=0, alpha=1 / self.temperature).exp_()
        partner = self.half if top < self.half else -self.half
        for shift in (0, partner):
            diagonal = self.offset + top + shift - left
            if -len(rows) < diagonal < len(columns):
                block.diagonal(diagonal).zero_()
        return block


def _margin(z: Tensor, temperature: float) -> float:
    """How much smaller, relatively, rounding may make a negative's term than its equal positive's.

    The same cosine, summed in another order, has been seen to differ by 3.5 units of the last place
    in float32, and in float64 by a third of the root of the width.
    """
    units = max(4.0, math.sqrt(z.shape[1]) / 2)
    return units * torch.finfo(z.dtype).eps * (1 + 1 / temperature)


def _ranges(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    return [(a, min(a + size, stop)) for a in range(start, stop, size)]


class _NTXent(torch.autograd.Function):
    """Forward: two views' projections `[B, P]` to (loss, rank of the positive, log-sum)."""

    @staticmethod
    def forward(
        ctx: Any,
        z1: Tensor,
        z2: Tensor,
        images: Sequence[int] | None,
        temperature: float,
        size: int,
        count: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = 1 / temperature > _LARGEST_EXPONENT
        least = torch.float64 if wide else torch.float32
        z = torch.cat([z1, z2]).to(torch.promote_types(z1.dtype, least))
        length = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_(min=_SMALLEST_LENGTH)
        z /= length
        if images is None:
            counts = row_counts(z.shape[0], z.device)
        else:
            counts = [2 * rows for rows in images]
        if sum(counts) < 4:
            raise UserError(
                "NT-Xent needs at least 2 images in a batch: one alone has no negatives"
            )
        everyone = gather_rows(z, counts)
        blocks = _Blocks(z.shape[0], counts, size, temperature)
        positive = torch.linalg.vecdot(*z.chunk(2)).div_(temperature).repeat(2)
        level = positive.exp().mul_(1 - _margin(z, temperature))
        total = torch.zeros_like(positive)
        below = torch.zeros_like(positive, dtype=torch.int64)
        kept = []
        for r, c, block in blocks.visit(z, everyone):
            mirror = blocks.symmetric and r != c
            total[r] += block.sum(1)
            if mirror:
                total[c] += block.sum(0)
            if count:
                below[r] += (block < level[r, None]).sum(1)
            if count and mirror:
                below[c] += (block < level[c]).sum(0)
            if blocks.few:
                kept.append((r, c, block))
        # Self and positive, whose terms are 0, are below the level of an anchor that is a number.
        rank = (sum(counts) - below).clamp_(max=sum(counts) - 2)
        log_sum = total.log()
        # Ranks of different sizes: the mean over ranks of these is the mean over all anchors.
        weight = len(counts) / sum(counts)
        # Beyond 40 softplus(x) is x in float64 too; torch's own threshold of 20 is not far enough.
        loss = F.softplus(log_sum - positive, threshold=40).sum() * weight
        if any(ctx.needs_input_grad):
            # w_ij = share_i exp(s_ij).
            pull = torch.sigmoid(log_sum - positive)
            share = pull / total
            ctx.save_for_backward(z, length, everyone, pull, share, gather_rows(share, counts))
            ctx.blocks, ctx.kept = blocks, kept
            ctx.factor, ctx.dtype = weight / temperature, z1.dtype
        ctx.mark_non_differentiable(rank, log_sum)
        return loss, rank, log_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        z, length, everyone, pull, share, shares = ctx.saved_tensors
        blocks: _Blocks = ctx.blocks
        with torch.autocast(z.device.type, enabled=False), full_precision():
            pull = pull + pull.roll(blocks.half)  # as an anchor, and as its positive's positive
            grad = z.roll(blocks.half, 0).mul_(-pull[:, None])
            for r, c, block in ctx.kept or blocks.visit(z, everyone):
                weights = (share[r, None] + shares[c]).mul_(block)
                grad[r].addmm_(weights, everyone[c])
                if blocks.symmetric and r != c:
                    grad[c].addmm_(weights.T, everyone[r])
            # Through the normalisation: what lies along z changes its length alone.
            grad.addcmul_(z, torch.linalg.vecdot(z, grad)[:, None], value=-1)
            grad *= grads[0] * ctx.factor / length
            first, second = grad.to(ctx.dtype).chunk(2)
        return first, second, None, None, None, None
