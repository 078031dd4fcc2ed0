"""dashboard: every panel shows what runs really log, and W&B's own model reads the definition."""

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Outcome, fit, run
from offline import history, records
from wandb_server import no_answer, wandb_server

from simclr_pl.commands import dashboard
from simclr_pl.commands.dashboard import MORE, PICTURES, SECTIONS, STEP, lines_of
from simclr_pl.pictures.curves import TOPICS

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")  # of the library's own code

installed = pytest.mark.skipif(
    importlib.util.find_spec("wandb_workspaces") is None, reason="wandb-workspaces isn't installed"
)

ON_CUDA = "speed/gpu_memory_bytes"


def made(*args: object) -> Outcome:
    outcome = run("dashboard", *args)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return outcome


def shown(definition: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Metrics and images of all panels."""
    sections = definition["spec"]["section"]["panelBankConfig"]["sections"]
    configs = [panel["config"] for section in sections for panel in section["panels"]]
    metrics = {name for config in configs for name in config.get("metrics", [])}
    return metrics, {name for config in configs for name in config.get("mediaKeys", [])}


def test_every_topic_of_the_report_is_in_a_section() -> None:
    assert sorted(t for topics in SECTIONS.values() for t in topics) == sorted({*TOPICS, *MORE})
    assert all(lines_of(topic) for topics in SECTIONS.values() for topic in topics)


@installed
def test_every_panel_shows_what_runs_log(tmp_path: Path) -> None:
    every = ("linear", "pictures", "knn")  # once, behind the last of two epochs
    on = [word for name in every for word in (f"--{name}.every_n_epochs", "2")]
    on += ["--linear.test_at_end", "true"]
    fit(tmp_path / "run", *on, "--wandb", "offline")
    tuned = run(
        *("finetune", "--run_dir", tmp_path / "run", "--label_fraction", "0.2"),
        *("--epochs", "1", "--trainer.log_every_n_steps", "1", "--wandb", "offline"),
    )
    assert tuned.code == 0, tuned
    logged: set[str] = set()
    for folder in (tmp_path / "run", *(tmp_path / "run" / "finetune").iterdir()):
        for part in records(folder):
            logged |= {name for row in history(part) for name in row}
    made("--out", tmp_path / "made.json")
    metrics, pictures = shown(json.loads((tmp_path / "made.json").read_text()))
    assert metrics - logged == {ON_CUDA}
    assert pictures == set(PICTURES)
    assert pictures == {n.partition(".")[0] for n in logged if n.startswith("pictures/")}
    assert STEP in logged


@pytest.mark.gpu
def test_memory_of_a_gpu_is_logged_by_the_name_that_is_shown(tmp_path: Path) -> None:
    fit(tmp_path / "run", "--trainer.accelerator", "gpu")
    assert ON_CUDA in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")


@installed
def test_the_definition_is_read_back_by_the_library_as_it_was_made(tmp_path: Path) -> None:
    from wandb_workspaces.workspaces import Workspace, internal

    path = tmp_path / "made.json"
    said = made("--out", path, "--project", "mine", "--entity", "us", "--name", "Story")
    sentence = f"nobody is logged in to W&B (wandb login): the dashboard's definition is in {path}"
    assert said.out == f"{sentence}\n"
    view = internal.View.model_validate_json(path.read_text())
    back = Workspace._from_model(view)
    assert (back.project, back.entity, back.name) == ("mine", "us", "Story")
    assert [s.name for s in back.sections if s.is_open] == [s.name for s in back.sections][:4]
    assert {section.name for section in back.sections} > set(SECTIONS)
    assert back.settings.x_axis == STEP
    plots = [p for s in back.sections for p in s.panels if type(p).__name__ == "LinePlot"]
    assert {plot.title: [metric.name for metric in plot.y] for plot in plots} == {
        topic: list(lines_of(topic)) for topics in SECTIONS.values() for topic in topics
    }
    assert {plot.x.name for plot in plots} == {STEP}
    top1 = next(plot for plot in plots if plot.title == "online probe, top-1")
    assert top1.range_y == (0, 1)
    note = next(p for p in back.sections[0].panels if type(p).__name__ == "MarkdownPanel")
    assert "`health/chance_loss` (NT-Xent's is log(2 x batch - 1))" in note.markdown
    again = back._to_model().spec.model_dump(by_alias=True, exclude_none=True)
    assert again == view.spec.model_dump(by_alias=True, exclude_none=True)


@installed
@pytest.mark.processes
def test_a_view_is_saved_where_a_server_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    # As of a command line that names such a folder, which W&B's own process does not take.
    monkeypatch.setattr(sys, "argv", ["simclr_pl", os.fsdecode(b"h\xf6me")])
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        said = run("dashboard", "--name", "Story")
    assert said.code == 0, said
    assert len(server.views) == 1, said
    (view,) = server.views
    assert said.out == f"{server.address}/me/simclr_pl?nw={view['name'][3:-2]}\n"
    assert (view["entityName"], view["projectName"]) == ("me", "simclr_pl")
    assert view["displayName"] == "Story"
    made("--out", "made.json", "--wandb", "offline")
    definition = json.loads(Path("made.json").read_text())
    assert shown({"spec": json.loads(view["spec"])}) == shown(definition)
    assert [path.name for path in Path().iterdir()] == ["made.json"]


@installed
@pytest.mark.parametrize("silent", [True, False], ids=["silent", "closed"])
@pytest.mark.processes
def test_a_server_that_does_not_answer_costs_seconds_and_the_file_is_written(
    silent: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dashboard, "SERVER_TIMEOUT_S", 4.0)
    with no_answer(silent, monkeypatch, 30):
        said = made("--out", tmp_path / "made.json")
        assert said.out.startswith("W&B does not answer (")
        assert said.out.count("\n") == 1
        assert shown(json.loads((tmp_path / "made.json").read_text()))[0]
        assert "W&B does not answer" in run("dashboard", "--wandb", "online").sentence


@installed
def test_asked_for_online_without_a_login_ends_in_a_sentence(tmp_path: Path) -> None:
    outcome = run("dashboard", "--wandb", "online", "--out", tmp_path / "made.json")
    assert "nobody is logged in to W&B (wandb login)" in outcome.sentence
    assert not (tmp_path / "made.json").exists()
    outcome = run("dashboard", "--out", tmp_path / "none" / "made.json")
    assert (
        f"cannot be written (there is no folder {tmp_path / 'none'}): give another --out"
        in outcome.sentence
    )


def test_without_the_package_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert "pip install wandb-workspaces" in run("dashboard").sentence
