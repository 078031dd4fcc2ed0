"""`report`: pictures and tables of runs, finished or not."""

import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from simclr_pl.commandline.call import call, data_of
from simclr_pl.core.errors import UserError
from simclr_pl.core.model.checkpoint import KEY, read_checkpoint
from simclr_pl.core.paths import expanded
from simclr_pl.pictures.curves import draw_comparison, draw_curves
from simclr_pl.pictures.encoded_sample import take_snapshot
from simclr_pl.pictures.features import draw_all
from simclr_pl.pictures.page import build_page, png, recipe_table, results_table, runs_table
from simclr_pl.pictures.read_runs import Run, read_runs
from simclr_pl.pictures.views import draw_views
from simclr_pl.run.seen import kept_by, range_in
from simclr_pl.writing import make_folder, whole, write_text

CAPTIONS = {
    "curves": "Curves",
    "views": "Views: what the augmentation does",
    "neighbours": "Nearest neighbours",
    "confusion": "Which class is taken for which",
    "map": "Map of the features",
    "similarities": "Positives and negatives",
    "comparison": "Curves of all runs",
}


def report(
    *,
    runs: Sequence[str] = (),
    run_dir: str | None = None,
    out: str | None = None,
    curves_only: bool = False,
) -> Path:
    """Draws a run to its pictures/ and one page, report.html; or compares several runs.

    Of one run: curves of everything logged, and, where there is a checkpoint, views, nearest
    neighbours, kNN confusions, a map of the features, and similarities of positives and negatives
    (at most 10,000 images of train and 2,000 of val are encoded). Of several: a table, and the
    curves over each other, in comparison.html. A run may still be training.

    Args:
        runs: directories of runs.
        run_dir: directory of a run, the same as giving it without a name.
        out: folder of the page, and of a comparison's picture (default: the first run's).
        curves_only: leave out everything that needs the checkpoint and the images.

    Returns:
        The page's path.

    Raises:
        UserError: no run there, one that has logged nothing yet, or files that cannot be read.
    """
    found = read_runs([*runs, *([run_dir] if run_dir else [])])
    folder = expanded(out) if out else found[0].directory.path
    if len(found) > 1:
        return _compare(found, folder)
    (run,) = found
    figures = {"curves": draw_curves(run)}
    if not curves_only and run.config and run.directory.last_checkpoint.is_file():
        try:
            figures |= _pictures(run)
        except UserError as error:
            raise UserError(f"{error} (--curves_only draws without images)") from error
    tables = {"Recipe": recipe_table(run)}
    tables |= {"Results": results_table(run)} if run.results else {}
    images = _save(figures, run.directory.pictures)
    return _write(build_page(f"Run {run.label}", tables, images), folder / "report.html")


def _pictures(run: Run) -> dict[str, Figure]:
    """Everything that needs images."""
    checkpoint = run.directory.last_checkpoint
    about = read_checkpoint(checkpoint)[KEY]
    seen = {"mean": tuple(about["mean"]), "std": tuple(about["std"]), **range_in(about)}
    data = data_of([run.directory.config], seen, kept_by(run.directory, checkpoint))
    try:
        figures = {"views": draw_views(data, images=8, epochs=3)}
        return figures | draw_all(take_snapshot(run.directory, data))
    finally:
        data.teardown()


def _compare(runs: list[Run], folder: Path) -> Path:
    table = runs_table(runs)
    sys.stdout.write(table.markdown() + "\n")
    images = _save({"comparison": draw_comparison(runs)}, folder / "pictures")
    page = build_page(f"{len(runs)} runs", {"Runs": table}, images)
    return _write(page, folder / "comparison.html")


def _save(figures: dict[str, Figure], folder: Path) -> dict[str, bytes]:
    """Writes PNG files, and returns them by caption."""
    images = {}
    for name, figure in figures.items():
        image = images[CAPTIONS[name]] = png(figure)
        target = folder / f"{name}.png"
        make_folder(folder)
        with whole(target) as file:
            file.write(image)
        sys.stdout.write(f"{target}\n")
    return images


def _write(page: str, target: Path) -> Path:
    make_folder(target.parent, "--out")
    write_text(target, page, "--out")
    sys.stdout.write(f"{target}\n")
    return target


def run_cli(args: list[str]) -> None:
    """The command."""
    call(report, args, several="runs")
