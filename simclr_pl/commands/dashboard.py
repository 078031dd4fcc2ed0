"""`dashboard`: a W&B workspace with panels that tell a pretraining's story, made by code."""

import math
import sys
from pathlib import Path
from typing import Any

from simclr_pl.commandline.call import call
from simclr_pl.core.errors import UserError
from simclr_pl.core.paths import expanded
from simclr_pl.pictures.curves import FROM_ZERO, SHARES, TOPICS
from simclr_pl.tracking.wandb import SERVER_TIMEOUT_S, failures, first_line, silent
from simclr_pl.tracking.wandb_mode import Mode, default_project, logged_in, resolve_mode, setting
from simclr_pl.writing import write_text

STEP = "trainer/global_step"
"""The axis of every panel: W&B's own step begins anew with each part of a resumed run."""

SECTIONS: dict[str, tuple[str, ...]] = {
    "Is it learning?": ("loss", "loss less its chance level", "contrastive top-1"),
    "Is the representation worth something?": (
        "online probe, top-1",
        "kNN, top-1 on val",
        "linear evaluation, top-1",
    ),
    "Is it healthy?": (
        "effective rank of features (RankMe)",
        "alignment (0: views agree)",
        "uniformity (lower: more even)",
        "cosine similarity",
        "standard deviation (0: collapse)",
    ),
    "Optimiser": ("learning rate", "gradient norm"),
    "Is it fast?": ("images a second", "share of time waiting for data", "GPU memory, bytes"),
    "Fine-tuning": ("cross-entropy of fine-tuning", "fine-tuning, top-1"),
}
"""The report's topics."""

OPEN = 3
"""Sections that are open from the start."""

MORE = {
    "loss": {"health/chance_loss": "chance of train"},
    "kNN, top-1 on val": {"knn/val_top1": "k = 20", "knn200/val_top1": "k = 200"},
}
"""Further curves of topics that `report` derives from the run's config."""

PICTURES = {
    "pictures/views": "What the augmentation does",
    "pictures/neighbours": "Nearest neighbours",
    "pictures/map": "Map of the features",
    "pictures/confusion": "Which class is taken for which",
    "pictures/similarities": "Positives and negatives",
}
"""Images that `fit` logs."""

NOTE = (
    "Accuracies are fractions of `val`, from 0 to 1, of the step they stand at. Chance of "
    "`train/loss` is `health/chance_loss` (NT-Xent's is log(2 x batch - 1)); "
    "`health/loss_over_chance` is the loss less that, so that 0 is its chance line for any batch. "
    "With NT-Xent it begins far above 0 where the "
    "temperature is small, and should be below 0 soon."
)


def dashboard(
    *,
    out: str = "dashboard.json",
    project: str | None = None,
    entity: str | None = None,
    name: str = "SimCLR",
    wandb: Mode = "auto",
) -> str:
    """Makes a W&B workspace: panels for loss, probe, kNN, health, speed and pictures, in sections.

    The x axis is the optimiser step. Online, where somebody is logged in and the server answers, a
    new view appears in the project; else its definition is written to a file, as W&B's app keeps
    views. Needs the package wandb-workspaces: pip install -e ".[dashboard]".

    Args:
        out: JSON file for the definition where W&B isn't reached.
        project: of W&B, the one that runs are logged to (default: WANDB_PROJECT, else simclr_pl).
        entity: of W&B, a user or a team (default: WANDB_ENTITY, else the user's own).
        name: of the view.
        wandb: auto is online when logged in; offline writes the file; online fails where auto
            would write it.

    Returns:
        Where it is: an address, or the file's path.

    Raises:
        UserError: the package is missing, the file cannot be written, or W&B was asked for and is
            not reached.
    """
    mode = resolve_mode(wandb)
    reason = f"W&B is {mode}"
    if mode == "online" or (wandb == "auto" and not logged_in()):
        reason = "nobody is logged in to W&B (wandb login)"
    entity = entity or setting("entity") or None
    workspace = build_workspace(project or default_project(), entity or "", name)
    if mode == "online" and logged_in():
        expected: tuple[type[Exception], ...] = (*failures(), TypeError, KeyError)
        try:
            return _save(workspace, entity)
        except expected as error:
            reason = f"W&B does not answer ({first_line(error)})"
    if wandb == "online":
        raise UserError(f"{reason}: put that right, or let --wandb offline write a file")
    _write(workspace, expanded(out))
    sys.stdout.write(f"{reason}: the dashboard's definition is in {out}\n")
    return out


def build_workspace(project: str, entity: str, name: str) -> Any:
    """The workspace, a `wandb_workspaces.workspaces.Workspace` that is nowhere yet.

    Args:
        project: of W&B.
        entity: of W&B.
        name: of the view.

    Raises:
        UserError: the package is missing.
    """
    try:
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces.reports.v2 import panels
    except ImportError as error:
        raise UserError(
            "dashboard needs the package wandb-workspaces: pip install wandb-workspaces"
        ) from error
    sections = [
        ws.Section(
            name=title, panels=[_plot(panels, topic) for topic in topics], is_open=place < OPEN
        )
        for place, (title, topics) in enumerate(SECTIONS.items())
    ]
    sections[0].panels = [*sections[0].panels, panels.MarkdownPanel(markdown=NOTE)]
    pictures: list[Any] = [
        panels.MediaBrowser(title=title, media_keys=[key], num_columns=1)
        for key, title in PICTURES.items()
    ]
    sections.insert(2, ws.Section(name="What does it see?", panels=pictures, is_open=True))
    settings = ws.WorkspaceSettings(x_axis=STEP)
    return ws.Workspace(
        entity=entity, project=project, name=name, sections=sections, settings=settings
    )


def lines_of(topic: str) -> dict[str, str]:
    """A topic's metrics, each with what it is."""
    return TOPICS.get(topic, {}) | MORE.get(topic, {})


def _plot(panels: Any, topic: str) -> Any:
    bottom = 0 if topic in (*SHARES, *FROM_ZERO) else None
    return panels.LinePlot(
        title=topic,
        x=STEP,
        y=list(lines_of(topic)),
        range_y=(bottom, 1 if topic in SHARES else None),
        title_x="optimiser step",
        smoothing_type="none",
    )


def _save(workspace: Any, entity: str | None) -> str:
    """Makes the view on the server."""
    import wandb

    with silent():  # we say the address ourselves
        # First of all: the package itself would wait for minutes.
        api = wandb.Api(timeout=math.ceil(SERVER_TIMEOUT_S / 2))
        workspace.entity = entity or str(api.default_entity)
        address = str(workspace.save().url)
    sys.stdout.write(f"{address}\n")
    return address


def _write(workspace: Any, path: Path) -> None:
    """Writes what `save` would send: the package has no public way to a file."""
    text = workspace._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2)
    write_text(path, text + "\n", "--out")


def run_cli(args: list[str]) -> None:
    """The command."""
    call(dashboard, args)
