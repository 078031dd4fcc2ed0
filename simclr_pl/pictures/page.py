"""Tables of runs, as Markdown and HTML, and the page that needs no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from simclr_pl.pictures.read_runs import Run
from simclr_pl.pictures.views import DPI

NONE = "\u2013"

RECIPE = {
    "data": (
        "dataset", "batch_size", "image_size", "scale", "flip", "jitter", "grayscale", "blur",
    ),
    "model": (
        "encoder", "encoder_args", "projector_layers", "projection_dim", "objective", "temperature",
        "optimizer", "learning_rate", "lr_scaling", "weight_decay", "warmup_epochs",
    ),
    "trainer": ("max_epochs", "precision"),
}  # fmt: skip
"""The keys that somebody asks for first; all are in config.yaml."""

RESULT = ("protocol", "split", "seed", "epoch", "top1", "top5", "checkpoint")

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1400px; padding: 0 1rem;
  color: #111; background: #fff; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: 14px; }
th, td { border: 1px solid #bbb; padding: .25rem .6rem; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th { background: #eee; }
.wide { overflow-x: auto; }
figure { margin: 0 0 2rem; }
img { max-width: 100%; height: auto; }
"""


class Table(NamedTuple):
    """A table of text.

    Attributes:
        head: titles of the columns.
        rows: as many cells each.
    """

    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """For a terminal, a README, or an issue."""
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )

    def html(self) -> str:
        """For a page."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in self.head)
        rows = [
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        ]
        return (
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>'
            + "\n".join(rows)
            + "</tbody></table></div>"
        )


def recipe_table(run: Run) -> Table:
    """The recipe's main keys."""
    rows = [["seed", _text(run.seed)]]
    rows += [
        [f"{group}.{key}", _text(run.of(group, key))]
        for group, keys in RECIPE.items()
        for key in keys
    ]
    return Table(["key", "value"], rows)


def results_table(run: Run) -> Table:
    """Scores of a run: a row for each file of results/."""
    # Without a column for top-5 where there are fewer than six classes.
    top5 = any(result.get("top5") is not None for result in run.results)
    keys = [key for key in RESULT if top5 or key != "top5"]
    return Table(keys, [[_fraction(result.get(key)) for key in keys] for result in run.results])


def runs_table(runs: Sequence[Run]) -> Table:
    """A column a run: recipe, how far it is, the last values logged, and what was evaluated."""
    logged = ("probe/val_top1", "knn/val_top1", "linear/val_top1")
    scored = dict.fromkeys(_protocol(result) for run in runs for result in run.results)
    rows = [
        ["encoder", *(_text(run.of("model", "encoder")) for run in runs)],
        ["data", *(run.data for run in runs)],
        ["batch (global)", *(_text(run.of("data", "batch_size")) for run in runs)],
        ["epochs", *map(_epochs, runs)],
        ["seed", *(_text(run.seed) for run in runs)],
    ]
    rows += [[name, *(_at(run.last(name)) for run in runs)] for name in logged]
    for protocol, split in scored:
        scores = (_scores(run, protocol, split) for run in runs)
        rows.append([f"{protocol}, top-1 on {split}", *scores])
    return Table(["run", *(run.label for run in runs)], rows)


def _epochs(run: Run) -> str:
    wanted = run.of("trainer", "max_epochs")
    return f"{run.epochs} of {wanted}" if wanted else str(run.epochs)


def _protocol(result: dict[str, Any]) -> tuple[str, str]:
    return str(result.get("protocol")), str(result.get("split"))


def _scores(run: Run, protocol: str, split: str) -> str:
    """The top-1 of every file of one protocol and split, a file a seed."""
    mine = [result for result in run.results if _protocol(result) == (protocol, split)]
    each = (
        f"{_fraction(r.get('top1'))} (epoch {_text(r.get('epoch'))}, seed {_text(r.get('seed'))})"
        for r in mine
    )
    return ", ".join(each) or NONE


def _at(value: tuple[int, float] | None) -> str:
    return NONE if value is None else f"{value[1]:.4f} (epoch {value[0]})"


def _fraction(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else _text(value)


def _text(value: Any) -> str:
    if value is None:
        return NONE
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def build_page(title: str, tables: Mapping[str, Table], images: Mapping[str, bytes]) -> str:
    """One HTML file with everything in it: no links, no scripts, no other files.

    Args:
        title: of the page.
        tables: by heading.
        images: PNG files by caption.
    """
    parts = [f"<h2>{escape(name)}</h2>\n{table.html()}" for name, table in tables.items()]
    for caption, image in images.items():
        data = base64.b64encode(image).decode()
        parts.append(
            f'<h2>{escape(caption)}</h2>\n<figure><img alt="{escape(caption)}" '
            f'src="data:image/png;base64,{data}"></figure>'
        )
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )
