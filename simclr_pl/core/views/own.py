"""Views of the user's own: `data.views` as a class path, a function or an object."""

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from simclr_pl.core.batch import Batch, EvaluationBatch, Views
from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import accepted, construct, lookup, name_of
from simclr_pl.core.views.simclr import SimCLRViews

OPTION = "data.views"

VIEWS = {
    "simclr": "simclr_pl.core.views.simclr:SimCLRViews",
    "extended": "simclr_pl.images.views.extended:MoreViews",
}

OFFERED = (
    "image_size", "scale", "flip", "jitter", "grayscale", "blur", "mean", "std", "seed", "compiled",
)  # fmt: skip
"""Attributes of the paper's views that a class of the user's gets, as far as it names them."""


def build_views(given: Any, paper: SimCLRViews) -> Any:
    """What makes the views: the paper's, or what a recipe or Python gives.

    Args:
        given: `None` or `simclr`; another name of `VIEWS`, a class path, or a mapping of
            `class_path` and `init_args`; from Python a class, or an object: (images uint8 [B, C, H,
            W], index int64 [B], epoch) to V float tensors [B, C, S, S].
        paper: the paper's views of these data.

    Raises:
        UserError: it cannot be found or made.
    """
    if given in (None, "simclr"):
        return paper
    choice = lookup(given, VIEWS, OPTION)
    offered = {name: getattr(paper, name) for name in OFFERED}
    if inspect.isclass(choice.target):
        return construct(choice, OPTION, **offered)
    if choice.target is given:  # an object of Python's
        return given
    more = accepted(choice.target, offered, choice.args)
    return functools.partial(choice.target, **more, **choice.args)


def count_of(views: Any) -> int:
    """V, before any view is made: what is declared as `count`, or 2."""
    return int(getattr(views, "count", 2))


@torch.no_grad()
def views_of(makes: Any, batch: Batch) -> Views:
    """Views of each image of a batch.

    Args:
        makes: from `build_views`.
        batch: images on the device that the views are wanted on.

    Raises:
        UserError: `makes` gives anything but V float tensors `[B, C, S, S]`.
    """
    sizes = {} if batch.sizes is None else {"sizes": batch.sizes}
    if isinstance(makes, nn.Module):
        makes.to(batch.images.device)
    made = makes(batch.images, batch.index, batch.epoch, **sizes)
    if not isinstance(makes, SimCLRViews):
        _check_views(made, len(batch.index), makes)
    count = len(made)
    labels, index = batch.labels.repeat(count), batch.index.repeat(count)
    groups = None if batch.groups is None else batch.groups.repeat(count)
    return Views(torch.cat([*made]), labels, index, batch.epoch, per_image=count, groups=groups)


@torch.no_grad()
def clean_of(makes: Any, paper: SimCLRViews, batch: Batch, views: Views | None) -> EvaluationBatch:
    """The clean images of a batch, beside their views.

    Args:
        makes: from `build_views`; its own `clean` (images, and `sizes` where they differ), if it
            has one, makes the clean images, else that of the paper's views does.
        paper: the paper's views of these data.
        batch: images on the device that the result is wanted on.
        views: of the same batch, where they are wanted too.
    """
    # Worker-cut batches hold the clean crop last, already square, in the top left corner.
    side = paper.image_size
    whole = batch.images if batch.images.dim() == 4 else batch.images[:, -1, :, :side, :side]
    sizes = {} if batch.sizes is None else {"sizes": batch.sizes}
    clean = getattr(makes, "clean", paper.clean)(whole, **sizes)
    return EvaluationBatch(clean, views, batch.labels, batch.index)


def _check_views(made: Any, images: int, makes: Any) -> None:
    found, count = f"a {type(made).__name__}", count_of(makes)
    if isinstance(made, tuple | list) and all(isinstance(view, Tensor) for view in made):
        found = ", ".join(f"{view.dtype} {[*view.shape]}" for view in made) or "nothing"
        alike = len({(view.dtype, view.shape) for view in made}) == 1
        fits = alike and made[0].is_floating_point() and made[0].dim() == 4
        if fits and len(made[0]) == images and len(made) == count >= 2:
            return
    raise UserError(
        f"{OPTION}: {name_of(makes)} gives {found}, but must give {count} float tensors "
        f"[{images}, C, S, S] (more than two: say how many in an attribute 'count')"
    )
