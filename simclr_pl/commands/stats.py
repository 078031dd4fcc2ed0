"""`stats`: the images of a data set in numbers, and the lines of a recipe that follow from them."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from simclr_pl.commandline.call import call, data_arguments
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.data.sources import Labels, Pages, Range, Source
from simclr_pl.core.errors import UserError, check
from simclr_pl.core.lookup import Door
from simclr_pl.core.paths import expanded
from simclr_pl.images.datasets import prepare, read_raw
from simclr_pl.images.files.decode import BadImageError
from simclr_pl.images.numbers.read import read_numbers
from simclr_pl.images.numbers.sources import Numbers
from simclr_pl.images.readers.reader import Raw
from simclr_pl.images.scale import SAMPLE, in_range
from simclr_pl.images.survey import PERCENTILES, Survey, survey
from simclr_pl.images.workers.crops import Reading
from simclr_pl.images.workers.images import ImageFiles
from simclr_pl.run.directory import RunDirectory, file_to_write
from simclr_pl.writing import printable, write_text

MOST = 5000
"""Images that are looked at unless more are asked for."""

NAMED = 20
"""Bad images, and copies, that are named on the screen; a file has all of them."""

SHOWN = 4
"""Copies of one image in a line."""

SIDE = 224
"""Side that is suggested for images larger than this."""


@dataclass(frozen=True)
class DataOptions:
    """The data set, in place of a recipe's or beside it.

    Args:
        dataset: as `fit` has it: digits, cifar10, folder, manifest, npz, hub:NAME, a class path.
        root: folder or file of the data.
        range: numbers that are black and white, as [0, 4095], or auto.
        pages: of a file with several: channels or images.
        labels: given, or none.
        num_workers: processes that decode image files.
        max_pixels: of an image file; larger ones are bad.
    """

    dataset: Door | None = None
    root: str | None = None
    range: Range | Literal["auto"] | None = None
    pages: Pages | None = None
    labels: Labels | None = None
    num_workers: int | None = None
    max_pixels: int | None = None


def stats(
    *,
    config: str | list[str] | None = None,
    run_dir: str | None = None,
    data: DataOptions = DataOptions(),
    images: int | Literal["all"] = MOST,
    out: str | None = None,
) -> dict[str, Any]:
    """Looks at a data set's images: sizes, kinds, numbers of each band, copies, those that are bad.

    Prints the lines of a recipe that follow from them. Numbers of more than 8 bits need no range
    here: without one, `auto` is found as `fit` would find it.

    Args:
        config: a configuration file, or `[A.yaml, B.yaml]`, of which later ones win.
        run_dir: directory of a run, instead of a configuration.
        data: the data set, in place of theirs.
        images: how many images are looked at, evenly spread; or all.
        out: a JSON file for what was found (default: none is written).

    Returns:
        What is written.

    Raises:
        UserError: no data set is named; it cannot be read; no image of it can be read.
    """
    if images != "all":
        check(images >= 1, "images", images, "at least 1, or all")
    target = file_to_write(out) if out else None
    asked = _arguments(config, run_dir, data)
    module = ContrastiveDataModule(**asked)  # which refuses values out of range
    raw, within = _read(module)
    most = None if images == "all" else images
    found = survey(raw.splits, most, module.num_workers, module.reading["max_pixels"])
    if not found.bands:
        first = found.bad[0]
        raise UserError(
            f"no image of {module.dataset}'s train can be read: {first.name}, {first.why}"
        )
    recipe = _recipe(asked, found, within)
    content = _content(found, recipe)
    sys.stdout.write("\n".join(_lines(found, recipe)) + "\n")
    if target is not None:
        write_text(target, json.dumps(content, indent=2) + "\n", "--out")
        sys.stdout.write(f"written to {target}\n")
    return content


def _arguments(
    config: str | list[str] | None, run_dir: str | None, data: DataOptions
) -> dict[str, Any]:
    """Arguments of the data module that say which images are meant, and how they are read."""
    if config is not None and run_dir is not None:
        raise UserError("stats needs one of --config FILE and --run_dir RUN, or --data.dataset")
    files = [config] if isinstance(config, str) else config or []
    paths = [expanded(file) for file in files]
    if run_dir is not None:
        paths = [RunDirectory(run_dir).config]
        if not paths[0].is_file():
            raise UserError(f"{run_dir} holds no run: give the directory of a run as --run_dir")
    given = {name: value for name, value in vars(data).items() if value is not None}
    if not paths and "dataset" not in given:
        raise UserError("stats needs --config FILE, --run_dir RUN, or --data.dataset NAME")
    of_files = data_arguments(paths)
    if "dataset" in given:  # what the recipe says of its own images is of no others
        of_files = {k: v for k, v in of_files.items() if k not in ("range", "pages", "labels")}
    return {k: v for k, v in of_files.items() if k in vars(data)} | given


def _read(module: ContrastiveDataModule) -> tuple[Raw, Range | None]:
    """The splits, and the range of their numbers where a recipe has to give one."""
    given, how = module.given_dataset, module.reading
    prepare(given, module.root)
    # Files are listed as a training would list them, without a range where none is given.
    reading = Reading("skip", how["max_pixels"], how["range"] is not None, how["pages"])
    try:
        raw = read_raw(given, module.root, how["labels"], reading)
    except UserError:
        if reading.numbers:
            raise
        # There may be files of numbers (NumPy, HDF5, DICOM) alone.
        reading = reading._replace(numbers=True)
        raw = read_raw(given, module.root, how["labels"], reading)
    found = how["range"] or _range_of(raw.train, how["pages"], alone=reading.numbers)
    raw = raw._replace(**in_range(raw.splits, found, how["pages"], module.dataset))
    return raw, None if found is None else getattr(raw.train, "range", None)


def _range_of(train: Source, pages: Pages | None, *, alone: bool) -> Range | Literal["auto"] | None:
    """The range of images for which none is given; `None` where they are 8-bit gray or RGB.

    Args:
        train: the images.
        pages: what the pages of a file are.
        alone: whether there are files of numbers alone, which always have a range.
    """
    if isinstance(train, Numbers):
        return None if train.dtype == torch.uint8 else "auto"
    if type(train) is not ImageFiles:
        return None
    places = torch.linspace(0, len(train) - 1, min(SAMPLE, len(train))).long().unique()
    kinds = set()
    for place in places.tolist():
        try:
            read = read_numbers(train.paths[place], pages=pages)
        except BadImageError:  # the look at all images says so
            continue
        kinds.add((read.dtype, len(read)))
    if kinds <= {(torch.uint8, 1), (torch.uint8, 3)} and pages is None and not alone:
        return None
    return (0.0, 255.0) if {dtype for dtype, _ in kinds} == {torch.uint8} else "auto"


def _recipe(asked: dict[str, Any], found: Survey, within: Range | None) -> dict[str, Any]:
    """The `data` section of a recipe for these images."""
    names = ("dataset", "root", "pages", "labels")
    recipe: dict[str, Any] = {name: asked[name] for name in names if name in asked}
    if within is not None:
        recipe["range"] = [_short(number) for number in within]
    recipe["image_size"] = side_for(found.sizes)
    if all(band.unit_std > 0 for band in found.bands):
        recipe["mean"] = [round(band.unit_mean, 4) for band in found.bands]
        recipe["std"] = [max(round(band.unit_std, 4), 1e-4) for band in found.bands]
    return recipe


def side_for(sizes: Tensor) -> int:
    """A side of views, in pixels, for images `int64 [N, 2]` of these heights and widths."""
    shorter = sizes.amin(1)
    median = int(shorter.median())
    if int(shorter.min()) == int(shorter.max()) and median <= SIDE:
        return median
    return min(SIDE, max(median // 32 * 32, min(median, 32)))


def _content(found: Survey, recipe: dict[str, Any]) -> dict[str, Any]:
    return {
        "images": found.images,
        "looked_at": found.looked,
        "kinds": dict(found.kinds.most_common()),
        "sizes": dict(zip(("min", "median", "max"), _sizes(found), strict=True)),
        "bands": [
            {**band._asdict(), "percentiles": dict(zip(PERCENTILES, band.percentiles, strict=True))}
            for band in found.bands
        ],
        "bad": [{"image": bad.name, "reason": bad.why} for bad in found.bad],
        "copies": found.copies,
        "recipe": {"data": recipe},
    }


def _sizes(found: Survey) -> list[list[int]]:
    """The least, the median and the greatest height and width, each by itself."""
    ranked, last = found.sizes.sort(0).values, len(found.sizes) - 1
    return [ranked[place].tolist() for place in (0, last // 2, last)]


def look_lines(found: Survey) -> list[str]:
    """How many images there are and were looked at, their kinds and sizes."""
    looked = {split: f"{found.looked[split]:,} of {n:,}" for split, n in found.images.items()}
    parts = ", ".join(f"{split} {counts}" for split, counts in looked.items())
    lines = [f"  images  {sum(found.images.values()):,}, looked at: {parts}"]
    if not len(found.sizes):
        return lines
    sides = ", ".join(
        f"{name} {height} x {width}"
        for name, (height, width) in zip(("least", "median", "most"), _sizes(found), strict=True)
    )
    kinds = ", ".join(f"{kind}: {n:,}" for kind, n in found.kinds.most_common())
    return [*lines, f"  kinds   {kinds}", f"  sizes   {sides} (height x width in pixels)"]


def _lines(found: Survey, recipe: dict[str, Any]) -> list[str]:
    lines = [
        *look_lines(found),
        "  bands of train, as stored: mean, std, least, greatest; percentiles "
        + ", ".join(f"{share:g}" for share in PERCENTILES),
    ]
    for number, band in enumerate(found.bands, 1):
        empty = "" if band.unit_std > 0 else "  EMPTY (no contrast)"
        shares = " ".join(_number(share) for share in band.percentiles)
        four = " ".join(map(_number, (band.mean, band.std, band.low, band.high)))
        lines.append(f"    {number:>2}  {four}; {shares}{empty}")
    lines += bad_lines(found) + copy_lines(found)
    text = yaml.safe_dump({"data": recipe}, sort_keys=False, default_flow_style=None, width=1000)
    return [*lines, "for a recipe:", text.rstrip()]


def bad_lines(found: Survey) -> list[str]:
    """How many images cannot be read, and which: at most `NAMED` are named."""
    if not found.bad:
        return ["  every image that was looked at can be read"]
    names = [f"    {printable(bad.name)}: {bad.why}" for bad in found.bad[:NAMED]]
    more = [f"    and {len(found.bad) - NAMED} more"] if len(found.bad) > NAMED else []
    return [f"  {len(found.bad)} images cannot be read:", *names, *more]


def copy_lines(found: Survey) -> list[str]:
    """How many images are copies of others, pixel by pixel, and which lie in several splits."""
    copies, across = found.copies, found.across
    among = "" if found.looked == found.images else " among those looked at (--images all: in all)"
    if not copies:
        return [f"  no image has the pixels of another{among}"]
    extra = sum(map(len, copies)) - len(copies)
    sets = f"{len(across)} of {len(copies)} sets of copies lie across splits"
    lines = [f"  {extra} images are copies of others{among}; {sets}"]
    # Those across splits first: they are what a score would be wrong by.
    named = sorted(copies, key=lambda group: group not in across)[:NAMED]
    lines += [f"    {_equation(copied)}" for copied in named]
    return [*lines, *([f"    and {len(copies) - NAMED} more"] if len(copies) > NAMED else [])]


def _equation(copied: Sequence[tuple[str, str]]) -> str:
    """`train: a.png = val: b.png = ...`: some copies of an image, one of each split first."""
    first = {split: (split, name) for split, name in reversed(copied)}
    some = list(dict.fromkeys([*reversed(first.values()), *copied]))[:SHOWN]
    more = " = ..." if len(copied) > len(some) else ""
    return " = ".join(f"{split}: {printable(name)}" for split, name in some) + more


def _number(value: float) -> str:
    return f"{value:.5g}"


def _short(value: float) -> float:
    """In six digits, as the line about the range has it."""
    value = float(f"{value:.6g}")
    return int(value) if value == int(value) else value


def run_cli(args: list[str]) -> None:
    """The command."""
    call(stats, args)
