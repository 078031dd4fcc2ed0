"""Pictures of features: neighbours, confusions, a map, similarities."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import matplotlib.patheffects as effects
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.datamodule import ContrastiveDataModule, Split
from simclr_pl.pictures.curves import LINES, OKABE_ITO
from simclr_pl.pictures.encoded_sample import Snapshot
from simclr_pl.pictures.literal import literal
from simclr_pl.pictures.map import Flat, flatten
from simclr_pl.pictures.views import displayable
from simclr_pl.protocols.knn import neighbours, vote

K, TEMPERATURE = 20, 0.07
"""Parameters of kNN, as in `knn/val_top1`."""

BLUE, VERMILION = OKABE_ITO[:2]
MARKERS = "os^DvPX"
"""As many as are prime to the colours: both change from class to class, and no pair recurs."""

MOST_CLASSES = 20
"""Classes that are told apart in one picture."""

MOST_CONFUSED = 1_000
"""Classes of a picture of confusions: of more, none would have a pixel of its own."""

BINS = 40

GRAY: dict[str, Any] = {"s": 14, "color": "0.75", "linewidths": 0}
POINTS: dict[str, Any] = {"s": 26, "edgecolors": "0.3", "linewidths": 0.3}
HALO: dict[str, Any] = {
    "fontsize": 11, "weight": "bold", "ha": "center", "va": "center",
    "path_effects": [effects.withStroke(linewidth=2.5, foreground="white")],
}  # fmt: skip


def draw_all(snapshot: Snapshot) -> dict[str, Figure]:
    """Every picture that the data allows, by file name.

    Args:
        snapshot: unlabelled images are drawn without what needs a class, and features without
            projections without what needs these.
    """
    figures = {"neighbours": draw_neighbours(snapshot)}
    if 0 < len(snapshot.classes) <= MOST_CONFUSED:
        figures["confusion"] = draw_confusion(snapshot)
    if len(snapshot.val.index) > 2:
        figures["map"] = draw_map(snapshot)
    if len(snapshot.projections) and len(snapshot.val.index) > 2:
        figures["similarities"] = draw_similarities(snapshot)
    return figures


def draw_neighbours(snapshot: Snapshot, images: int = 8, k: int = 6) -> Figure:
    """A few validation images, and the training images nearest to each in cosine similarity.

    Args:
        snapshot: of an encoder.
        images: how many, evenly spread over the split: not chosen by hand.
        k: neighbours of each.
    """
    data, train, val = snapshot.data, snapshot.train, snapshot.val
    some = torch.linspace(0, len(val.index) - 1, min(images, len(val.index))).long()
    similarity, place = neighbours(val.features[some], train.features, k + 1)
    queries = _clean(data, "val", val.index[some])
    width = place.shape[1]
    near = _clean(data, "train", train.index[place.flatten()]).unflatten(0, (-1, width))
    figure = Figure(figsize=(1.15 * (k + 1) + 0.4, 1.35 * len(some) + 1.1), layout="constrained")
    axes = figure.subplots(len(some), k + 1, squeeze=False)
    for row, query in enumerate(queries):
        label = int(val.labels[some[row]])
        _thumbnail(axes[row][0], query, data)
        axes[row][0].set_title(_name(snapshot.classes, label) or "val image", fontsize=8)
        # Without labels train holds val's images too: the image itself is no neighbour.
        others = [i for i in range(width) if not torch.equal(near[row, i], query)][:k]
        for axis, i in zip_longest(axes[row][1:], others):
            axis.set_axis_off()
            if i is not None:
                _thumbnail(axis, near[row, i], data)
                its = int(train.labels[place[row, i]])
                name = "" if label == UNLABELLED else _name(snapshot.classes, its)
                _mark(axis, float(similarity[row, i]), name, its == label)
    key = "\n\u2713 solid blue: same class, \u2717 dashed red: another" if snapshot.classes else ""
    figure.suptitle(
        f"val images (left) and their nearest train images, by cosine similarity of features\n"
        f"{literal(snapshot.name)}, {snapshot.when}; among {snapshot.share('train')}{key}",
        fontsize=9,
    )
    return figure


def draw_confusion(snapshot: Snapshot) -> Figure:
    """Which class kNN (k = 20) takes for which, on the validation split.

    Args:
        snapshot: of labelled images.
    """
    train, val, names = snapshot.train, snapshot.val, snapshot.classes
    scored, known = val.labels != UNLABELLED, train.labels != UNLABELLED
    truth, bank_labels = val.labels[scored], train.labels[known]
    similarity, place = neighbours(val.features[scored], train.features[known], K)
    guess = vote(similarity, bank_labels[place], TEMPERATURE, len(names)).argmax(1)
    size = len(names)
    counts = multiclass_confusion_matrix(guess, truth, size, validate_args=False)
    side = 2.2 + min(max(0.42 * size, 3.5), 8)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axis = figure.subplots()
    share = counts / counts.sum(1, keepdim=True).clamp_min(1)
    shown = axis.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axis, shrink=0.7, label="share of the true class")
    every = -(-size // 30)
    ticks = range(0, size, every)
    labels = [_name(names, i, 24) for i in ticks]
    axis.set_xticks(ticks, labels, rotation=90 if max(map(len, labels)) > 2 else 0, fontsize=8)
    axis.set_yticks(ticks, labels, fontsize=8)
    axis.set(xlabel="predicted class", ylabel="true class")
    if size <= MOST_CLASSES:
        for row, column in counts.nonzero().tolist():
            colour = "white" if share[row, column] > 0.5 else "black"
            text = str(int(counts[row, column]))
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    top1 = counts.diag().sum() / counts.sum()
    axis.set_title(
        f"kNN (k = {K}, cosine, temperature {TEMPERATURE}), frozen features\n"
        f"{literal(snapshot.name)}, {snapshot.when}\n"
        f"{snapshot.share('val')} against {snapshot.share('train')}\ntop-1 {top1:.3f}",
        fontsize=9,
    )
    return figure


def draw_map(snapshot: Snapshot) -> Figure:
    """The validation split's normalised features in two dimensions, a class a colour.

    Args:
        snapshot: of three images or more.
    """
    maps = flatten(F.normalize(snapshot.val.features, dim=1))
    # Classes with the most images; as good as any where all have the same number.
    sizes = torch.bincount(snapshot.val.labels + 1, minlength=1 + len(snapshot.classes))[1:]
    shown = sizes.argsort(descending=True, stable=True)[:MOST_CLASSES].sort().values.tolist()
    figure = Figure(figsize=(5.2 * len(maps), 6.2), layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for axis, flat in zip(axes, maps, strict=True):
        _scatter(axis, flat, snapshot.val.labels, snapshot.classes, shown)
    handles, labels = axes[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    left_out = len(snapshot.classes) - len(shown)
    more = f"; {left_out} more classes in gray" if left_out else ""
    figure.suptitle(
        f"L2-normalised features of {snapshot.share('val')} of {literal(snapshot.name)}{more}\n"
        f"{snapshot.when}",
        fontsize=10,
    )
    return figure


def draw_similarities(snapshot: Snapshot) -> Figure:
    """Histograms of the cosine similarity of positives and negatives, of projections.

    Args:
        snapshot: of three images or more.
    """
    first, second = snapshot.projections
    cosine = first @ second.T
    itself = torch.eye(len(cosine), dtype=torch.bool)
    groups = {"positives: two views of an image": cosine[itself]}
    labels = snapshot.val.labels
    if snapshot.classes:
        same = (labels[:, None] == labels) & (labels != UNLABELLED) & ~itself
        groups["negatives of the same class"] = cosine[same]
        groups["negatives of other classes"] = cosine[~same & ~itself]
    else:
        groups["negatives: views of two images"] = cosine[~itself]
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axis = figure.subplots()
    edges = torch.linspace(-1, 1, BINS + 1)
    for (name, values), colour, line in zip(groups.items(), OKABE_ITO, LINES, strict=False):
        if len(values):
            share = torch.histc(values.clamp(-1, 1), BINS, -1, 1) / len(values)
            text = f"{name} (mean {values.mean():.2f}, {len(values):,} pairs)"
            axis.stairs(share, edges, color=colour, linestyle=line, linewidth=1.8, label=text)
    axis.set(
        xlabel="cosine similarity of projections", ylabel=f"share of pairs in a bin of {2 / BINS}"
    )
    axis.set_xlim(-1.02, 1.02)
    axis.grid(alpha=0.3)
    axis.set_title(
        f"projections of views of {snapshot.share('val')} of {literal(snapshot.name)}, eval mode\n"
        f"{snapshot.when}",
        fontsize=10,
    )
    figure.legend(loc="outside lower center", fontsize=9)
    return figure


def _clean(data: ContrastiveDataModule, split: Split, index: Tensor) -> Tensor:
    """Clean images `float [B, C, S, S]` of a split."""
    batch = next(iter(getattr(data.splits, split).batches([index], 0, "clean")))
    return data.make_clean(batch, views=False).clean


def _name(classes: Sequence[str], label: int, most: int = 12) -> str:
    """A class's name, cut to so many letters (12 fit over a picture); empty for none."""
    if label == UNLABELLED or not classes:
        return ""
    name = classes[label]
    return literal(name if len(name) <= most else name[: most - 1] + "\u2026")


def _thumbnail(axis: Axes, image: Tensor, data: ContrastiveDataModule) -> None:
    axis.set_axis_on()
    axis.imshow(displayable(image[None], data)[0], cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])


def _mark(axis: Axes, similarity: float, name: str, same: bool) -> None:
    """Says whether a neighbour is of the same class: by sign, frame and colour."""
    if not name:
        axis.set_title(f"{similarity:.2f}", fontsize=8)
        return
    colour = BLUE if same else VERMILION
    sign = "\u2713" if same else "\u2717"
    axis.set_title(f"{sign} {name}\n{similarity:.2f}", fontsize=8, color=colour)
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2.5, linestyle="-" if same else (0, (2, 1.5)))


def _scatter(
    axis: Axes, flat: Flat, labels: Tensor, classes: Sequence[str], shown: list[int]
) -> None:
    rest = ~torch.isin(labels, torch.tensor(shown, dtype=torch.int64))
    axis.scatter(*flat.points[rest].T.numpy(), **GRAY)
    names = [_name(classes, label, 24) for label in shown]
    for place, (label, name) in enumerate(zip(shown, names, strict=True)):
        mine = flat.points[labels == label]
        colour, marker = OKABE_ITO[place % len(OKABE_ITO)], MARKERS[place % len(MARKERS)]
        axis.scatter(*mine.T.numpy(), color=colour, marker=marker, label=name, **POINTS)
        # Long names, or many, would hide the points that they name, and each other.
        if len(mine) and max(map(len, names)) <= 3 and len(names) <= 12:
            x, y = mine.median(0).values.tolist()
            axis.text(x, y, name, **HALO)
    axis.set(xticks=[], yticks=[])
    axis.set_title(flat.title, fontsize=10)
