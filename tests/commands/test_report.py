"""report: pictures and pages of real runs, finished, running, unlabelled, compared, broken."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from commands import fit, run
from figures import check_picture, texts
from noise import write_images

from simclr_pl.commandline.call import data_of
from simclr_pl.pictures.curves import draw_comparison
from simclr_pl.pictures.encoded_sample import take_snapshot
from simclr_pl.pictures.features import draw_neighbours, draw_similarities
from simclr_pl.pictures.page import Table
from simclr_pl.pictures.read_runs import read_runs

LABELLED = {"curves", "views", "neighbours", "confusion", "map", "similarities"}


class _Page(HTMLParser):
    """What a page holds; every tag has to be closed by its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[bytes] = []
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            source = dict(attrs)["src"] or ""
            assert source.startswith("data:image/png;base64,")
            self.images.append(base64.b64decode(source.partition(",")[2], validate=True))
        if tag not in ("img", "meta"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def _page(path: Path) -> _Page:
    text = path.read_text(encoding="utf-8")
    # Nothing is fetched from elsewhere, and nothing is executed.
    without_images = re.sub(r"base64,[\w+/=]+", "", text)
    assert not re.search(r"https?:|//|<script|<link|@import|url\(|href", without_images)
    return _Page(text)


def _pictures(directory: Path) -> set[str]:
    found = sorted((directory / "pictures").glob("*.png"))
    for path in found:
        check_picture(path.read_bytes())
    return {path.stem for path in found}


# One run ------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_finished_run_gets_every_picture_and_a_page_of_its_own(finished: Path) -> None:
    run("compare", "--run_dir", finished, "--draws", 2)
    outcome = run("report", finished)
    assert outcome.code == 0, outcome
    assert outcome.err == ""
    assert _pictures(finished) == LABELLED
    page = _page(finished / "report.html")
    files = [(finished / "pictures" / f"{name}.png").read_bytes() for name in LABELLED]
    assert sorted(page.images) == sorted(files)
    result = json.loads((finished / "results" / "logistic-val-seed0.json").read_text())
    for shown in (
        "model.temperature",
        "resnet10t",
        "logistic",
        f"{result['top1']:.4g}",
        "last.ckpt",
    ):
        assert shown in page.text
    printed = [Path(line) for line in outcome.out.splitlines()]
    assert printed[-1] == finished / "report.html"
    assert all(path.is_file() for path in printed)
    assert len(printed) == len(LABELLED) + 1


@pytest.mark.long
def test_report_draws_the_curves(finished: Path) -> None:
    assert run("report", f"--run_dir={finished}").code == 0
    check_picture((finished / "pictures" / "curves.png").read_bytes())


def test_run_dir_is_another_way_to_name_the_run(finished: Path, tmp_path: Path) -> None:
    outcome = run("report", "--curves_only", "--run_dir", finished, "--out", tmp_path / "there")
    assert outcome.code == 0, outcome
    assert _pictures(finished) == {"curves"}
    assert len(_page(tmp_path / "there" / "report.html").images) == 1


def test_a_run_that_has_just_begun_gets_its_curves(finished: Path) -> None:
    """No checkpoint yet, and the last row is being written."""
    (finished / "checkpoints" / "last.ckpt").unlink()
    lines = (finished / "metrics.csv").read_bytes().splitlines(keepends=True)
    (finished / "metrics.csv").write_bytes(lines[0] + lines[1] + lines[2][:5])
    outcome = run("report", finished)
    assert outcome.code == 0, outcome
    assert _pictures(finished) == {"curves"}
    assert len(_page(finished / "report.html").images) == 1


def test_a_run_without_its_recipe_gets_its_curves(finished: Path) -> None:
    (finished / "config.yaml").unlink()
    assert run("report", finished).code == 0
    assert _pictures(finished) == {"curves"}


# Images without labels ----------------------------------------------------------------------------


@pytest.mark.long
def test_unlabelled_images_get_the_pictures_that_need_no_labels(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 130, 9, 11)
    directory = tmp_path / "run"
    fit(directory, "--data.dataset", "folder", "--data.root", folder, "--data.num_workers", 0)
    outcome = run("report", directory)
    assert outcome.code == 0, outcome
    assert _pictures(directory) == LABELLED - {"confusion"}
    (run_,) = read_runs([str(directory)])
    assert run_.data == "folder images"
    data = data_of([run_.directory.config])
    unlabelled = take_snapshot(run_.directory, data)
    assert unlabelled.classes == ()
    # Train holds val's images as well, and none of them is its own neighbour.
    figure = draw_neighbours(unlabelled, images=13, k=1)
    shown = [torch.as_tensor(axis.images[0].get_array()) for axis in figure.axes]
    pairs = list(zip(shown[::2], shown[1::2], strict=True))
    assert len(pairs) == 13
    assert not any(torch.equal(image, neighbour) for image, neighbour in pairs)
    assert "negatives: views of two images" in texts(draw_similarities(unlabelled))


# Several runs -------------------------------------------------------------------------------------


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.long
def test_several_runs_are_compared(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    fit(other, "--seed_everything", 5, "--data.batch_size", 64, "--trainer.max_epochs", 3)
    run("compare", "--run_dir", other, "--draws", 2)
    outcome = run("report", finished, other, finished, "--out", tmp_path / "both")
    assert outcome.code == 0, outcome
    head, rule, *lines = [line for line in outcome.out.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in (head, rule, *lines)} == {4}
    table = {cells[0]: cells[1:] for cells in map(_cells, (head, *lines))}
    assert table["run"] == ["finished", "other"]
    assert table["batch (global)"] == ["128", "64"]
    assert table["epochs"] == ["2 of 2", "3 of 3"]
    assert table["seed"] == ["0", "5"]
    result = json.loads((other / "results" / "logistic-val-seed5.json").read_text())
    assert table["logistic, top-1 on val"] == ["\u2013", f"{result['top1']:.4f} (epoch 3, seed 5)"]
    page = _page(tmp_path / "both" / "comparison.html")
    assert page.images == [(tmp_path / "both" / "pictures" / "comparison.png").read_bytes()]
    check_picture(page.images[0])
    assert page.tags.count("tr") == len(table)
    assert not (finished / "report.html").exists()

    figure = draw_comparison(read_runs([str(finished), str(other)]))
    (loss,) = [axis for axis in figure.axes if axis.get_title() == "train/loss"]
    # Over epochs, each with its own number of steps: both end where their last epoch does.
    assert [line.get_xdata()[-1] for line in loss.lines] == [2, 3]
    assert len({(line.get_color(), line.get_linestyle()) for line in loss.lines}) == 2


def test_runs_of_one_name_are_told_apart_by_their_path(finished: Path, tmp_path: Path) -> None:
    twin = tmp_path / "elsewhere" / "finished"
    twin.parent.mkdir()
    twin.symlink_to(finished)
    (twin.parent / "real").mkdir()
    assert len(read_runs([str(finished), str(twin)])) == 1  # one run, by another path
    copy = twin.parent / "real" / "finished"
    copy.mkdir()
    (copy / "metrics.csv").write_bytes((finished / "metrics.csv").read_bytes())
    labels = [each.label for each in read_runs([str(finished), str(copy)])]
    assert labels == [str(finished), str(copy)]


def test_a_run_of_several_that_has_logged_nothing_yet_is_an_empty_column(
    finished: Path, tmp_path: Path
) -> None:
    young = tmp_path / "young"
    young.mkdir()
    (young / "config.yaml").write_bytes((finished / "config.yaml").read_bytes())
    outcome = run("report", young, finished)
    assert outcome.code == 0, outcome
    lines = [line for line in outcome.out.splitlines() if line.startswith("|")]
    table = {cells[0]: cells[1] for cells in map(_cells, lines)}
    assert table["encoder"] == "resnet10t"
    assert table["epochs"] == "0 of 2"
    assert table["probe/val_top1"] == "\u2013"
    assert (young / "comparison.html").is_file()


def test_tables_keep_odd_names_in_their_cells() -> None:
    table = Table(["run"], [["a|b <i>"]])
    assert table.markdown().splitlines()[-1] == "| a\\|b <i> |"
    assert "a|b &lt;i&gt;" in table.html()


# What is wrong ------------------------------------------------------------------------------------


@pytest.mark.long
def test_errors_are_sentences(finished: Path, tmp_path: Path) -> None:
    assert "nowhere holds no run" in run("report", "nowhere").sentence
    assert "report runs/mine" in run("report").sentence
    assert "unknown" in run("report", finished, "--curve_only").sentence
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty holds no run" in run("report", finished, empty).sentence
    assert (
        "cannot be written"
        in run("report", finished, "--curves_only", "--out", finished / "config.yaml").sentence
    )
    shutil.rmtree(finished / "pictures")
    (finished / "pictures").write_text("in the way")
    assert "pictures cannot be written (File exists)" in run("report", finished).sentence


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("metrics.csv", "step,epoch\r\n", "no numbers yet"),
        ("metrics.csv", "step,epoch,train/loss\r\n1,0,zzz\r\n", "no number"),
        ("config.yaml", "a: [", "not YAML"),
        ("results/x.json", "{", "x.json is not JSON"),
        ("results/x.json", "[1]", "x.json is not a result"),
        ("checkpoints/last.ckpt", "zzz", "cannot be read"),
    ],
)
def test_broken_files_are_named(finished: Path, file: str, content: str, says: str) -> None:
    path = finished / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    sentence = run("report", finished).sentence
    assert says in sentence
    assert Path(file).name in sentence


@pytest.mark.long
def test_a_fine_tuned_run_is_drawn_but_for_projections(finished: Path) -> None:
    quick = ("--label_fraction", "0.1", "--epochs", "3", "--trainer.accelerator", "cpu")
    assert run("finetune", "--run_dir", finished, *quick, "--wandb", "off").code == 0
    tuned = finished / "finetune" / "finetune-0.1-seed0"
    outcome = run("report", tuned)
    assert (outcome.code, outcome.err) == (0, "")
    drawn = {path.stem for path in (tuned / "pictures").iterdir()}
    assert drawn == {"curves", "views", "neighbours", "confusion", "map"}
    page = (tuned / "report.html").read_text()
    assert "finetune-0.1-seed0" in page


@pytest.mark.long
def test_checkpoints_that_cannot_be_used_are_said_and_curves_go_without(finished: Path) -> None:
    path = finished / "checkpoints" / "last.ckpt"
    good = torch.load(path, weights_only=True)
    about = good["simclr_pl"]
    torch.save({**good, "simclr_pl": {**about, "format": 99}}, path)
    sentence = run("report", finished).sentence
    assert "format 99" in sentence
    assert "--curves_only" in sentence
    assert run("report", finished, "--curves_only", "true").code == 0
    good["state_dict"] = {name: value * torch.nan for name, value in good["state_dict"].items()}
    torch.save(good, path)
    assert "not finite" in run("report", finished).sentence
