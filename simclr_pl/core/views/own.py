"""Views of the user's own: `data.views` as a class path, a function or an object."""

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from simclr_pl.core.batch import Batch
from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import Choice, accepted, construct, lookup, name_of
from simclr_pl.core.views.simclr import SimCLRViews

OPTION = "data.views"

PAPER = {"simclr": "simclr_pl.core.views.simclr:SimCLRViews"}

OFFERED = ("image_size", "scale", "flip", "jitter", "grayscale", "blur", "mean", "std", "seed")
"""Attributes of the paper's views that a class of the user's gets, as far as it names them."""


def build_views(given: Any, paper: SimCLRViews) -> Any:
    """What makes the views: the paper's, or what a recipe or Python gives.

    Args:
        given: `None` or `simclr`; a class path, or a mapping of `class_path` and `init_args`; from
            Python a class, or an object: (images uint8 [B, C, H, W], index int64 [B], epoch) to V
            float tensors [B, C, S, S].
        paper: the paper's views of these data.

    Raises:
        UserError: it cannot be found or made.
    """
    if given in (None, "simclr"):
        return paper
    if isinstance(given, str | dict):
        choice = lookup(given, PAPER, OPTION)
    elif inspect.isclass(given):
        choice = Choice(name_of(given), given, {})
    else:
        return given
    offered = {name: getattr(paper, name) for name in OFFERED}
    if inspect.isclass(choice.target):
        return construct(choice, OPTION, **offered)
    more = accepted(choice.target, offered, choice.args)
    return functools.partial(choice.target, **more, **choice.args)


def count_of(views: Any) -> int:
    """V, before any view is made: what is declared as `count`, or 2."""
    return int(getattr(views, "count", 2))


def views_of(views: Any, batch: Batch) -> tuple[Tensor, ...]:
    """Calls what makes the views: V float tensors `[B, C, S, S]`.

    Raises:
        UserError: something else comes back.
    """
    sizes = {} if batch.sizes is None else {"sizes": batch.sizes}
    if isinstance(views, nn.Module):
        views.to(batch.images.device)
    with torch.no_grad():
        made = views(batch.images, batch.index, batch.epoch, **sizes)
    if isinstance(views, SimCLRViews):
        return tuple(made)
    found = f"a {type(made).__name__}"
    if isinstance(made, tuple | list) and all(isinstance(view, Tensor) for view in made):
        found = ", ".join(f"{view.dtype} {[*view.shape]}" for view in made) or "nothing"
        alike = {(view.dtype, view.shape) for view in made}
        fit = len(alike) == 1 and made[0].dim() == 4 and made[0].is_floating_point()
        if fit and len(made[0]) == len(batch.index) and len(made) == count_of(views) >= 2:
            return tuple(made)
    raise UserError(
        f"{OPTION}: {name_of(views)} gives {found}, but must give {count_of(views)} float tensors "
        f"[{len(batch.index)}, C, S, S] (more than two: say how many in an attribute 'count')"
    )
