"""report: pictures and pages of real runs, finished, running, unlabelled, compared, broken."""

import base64
import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from commands import fit, run
from matplotlib.figure import Figure
from PIL import Image

from simclr_pl.commandline.call import data_of
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.pictures import encoded_sample as snapshots
from simclr_pl.pictures.curves import draw_comparison, draw_curves
from simclr_pl.pictures.encoded_sample import Snapshot, take_snapshot
from simclr_pl.pictures.features import draw_confusion, draw_map, draw_neighbours, draw_similarities
from simclr_pl.pictures.map import flatten
from simclr_pl.pictures.page import Table, png
from simclr_pl.pictures.read_runs import read_runs
from simclr_pl.pictures.views import displayable
from simclr_pl.protocols.features import Features
from simclr_pl.run.directory import RunDirectory

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


def _check_picture(content: bytes) -> None:
    with Image.open(io.BytesIO(content)) as picture:
        assert min(picture.size) > 250
        assert max(picture.size) < 2500
        gray = picture.convert("L")
        counts = torch.tensor(gray.histogram()).double()
        assert (counts > 0).sum() > 20
        # Something is drawn, and the rest is paper.
        assert 0.005 < 1 - counts[255] / counts.sum() < 0.95


def _pictures(directory: Path) -> set[str]:
    found = sorted((directory / "pictures").glob("*.png"))
    for path in found:
        _check_picture(path.read_bytes())
    return {path.stem for path in found}


def _texts(figure: Figure) -> str:
    figure.canvas.draw()
    return "\n".join(t.get_text() for t in figure.findobj(match=lambda o: hasattr(o, "get_text")))


@pytest.fixture(scope="module")
def digits(source: Path) -> Snapshot:
    """What the encoder of a finished run makes of its data."""
    directory = RunDirectory(source)
    return take_snapshot(directory, data_of([directory.config]))


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


def test_curves_have_a_panel_for_each_topic_that_was_logged(finished: Path) -> None:
    path = finished / "metrics.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    more = ("linear/val_top1", "somebody/else")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *more])
        writer.writeheader()
        writer.writerows({**row, **dict.fromkeys(more, "0.5")} for row in rows)
    (run_,) = read_runs([str(finished)])
    figure = draw_curves(run_)
    titles = [axis.get_title() for axis in figure.axes if axis.lines]
    assert titles == [
        "loss", "contrastive top-1", "online probe, top-1", "kNN, top-1 on val",
        "linear evaluation, top-1", "loss less its chance level",
        "effective rank of features (RankMe)", "alignment (0: views agree)",
        "uniformity (lower: more even)", "cosine similarity", "standard deviation (0: collapse)",
        "learning rate", "gradient norm", "images a second", "share of time waiting for data",
    ]  # fmt: skip
    text = _texts(figure)
    assert "log(2 x 128 - 1) = 5.54" in text
    assert "k = 20\n" in text
    assert "k = 200" in text
    assert "epoch 2, seed 0" in text


@pytest.mark.long
def test_curves_of_a_run_that_diverged_are_drawn_as_far_as_they_go(finished: Path) -> None:
    with (finished / "metrics.csv").open("a") as file:
        file.write("4,2,nan,inf\n".replace("\n", "," * (_columns(finished) - 4) + "\r\n"))
    (run_,) = read_runs([str(finished)])
    _check_picture(png(draw_curves(run_)))
    _check_picture(png(draw_comparison([run_, run_])))
    assert len(run_.rows) == 5


def _columns(directory: Path) -> int:
    return len((directory / "metrics.csv").read_text().splitlines()[0].split(","))


# What the pictures say ----------------------------------------------------------------------------


def test_titles_say_protocol_split_epoch_and_seed(digits: Snapshot) -> None:
    for draw in (draw_neighbours, draw_confusion, draw_map, draw_similarities):
        text = _texts(draw(digits))
        assert "digits" in text
        assert "epoch 2 (step 4), seed 0" in text
        assert "val images" in text
    assert "k = 20, cosine, temperature 0.07" in _texts(draw_confusion(digits))


def test_confusions_are_those_of_knn_by_definition(digits: Snapshot) -> None:
    val, train = (
        torch.nn.functional.normalize(part.features, dim=1) for part in (digits.val, digits.train)
    )
    right = 0
    for feature, label in zip(val, digits.val.labels.tolist(), strict=True):
        similarity = train @ feature
        votes = torch.zeros(10)
        for place in similarity.argsort(descending=True)[:20].tolist():
            votes[digits.train.labels[place]] += torch.exp(similarity[place] / 0.07)
        right += int(votes.argmax()) == label
    assert f"top-1 {right / len(val):.3f}" in _texts(draw_confusion(digits))


def test_right_and_wrong_neighbours_differ_by_sign_and_frame(digits: Snapshot) -> None:
    def labelled(part: Features, label: int) -> Features:
        return part._replace(labels=torch.full_like(part.labels, label))

    for its, sign, solid in ((3, "\u2713 3", True), (4, "\u2717 4", False)):
        shown = digits._replace(train=labelled(digits.train, its), val=labelled(digits.val, 3))
        axes = draw_neighbours(shown, images=4, k=2).axes
        neighbours = [axis for place, axis in enumerate(axes) if place % 3]
        assert all(axis.get_title().startswith(sign) for axis in neighbours)
        assert all((axis.spines["left"].get_linestyle() == "-") == solid for axis in neighbours)


def test_large_splits_are_sampled_and_say_so(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MOST_TRAIN", 200)
    monkeypatch.setattr(snapshots, "MOST_VAL", 50)
    directory = RunDirectory(source)
    few = take_snapshot(directory, data_of([directory.config]))
    assert few.share("train") == "200 of 1,312 labelled train images"
    assert few.share("val") == "50 of 146 val images"
    assert few.projections.shape == (2, 50, 128)
    assert "50 of 146 val images" in _texts(draw_map(few))
    everything = few.data.splits.val.labels
    assert torch.equal(few.val.labels, everything[few.val.index])


def test_many_classes_are_drawn_in_part_and_it_is_said(digits: Snapshot) -> None:
    count = len(digits.val.labels)
    names = tuple(f"a class with the number {i}" for i in range(60))
    data = digits.data
    before = data.splits
    data.splits = before._replace(classes=names)
    try:
        many = digits._replace(val=digits.val._replace(labels=torch.arange(count) % 60))
        assert "40 more classes in gray" in _texts(draw_map(many))
        assert max(draw_confusion(many).get_size_inches()) < 15
    finally:
        data.splits = before


@pytest.mark.parametrize(
    "features", [torch.ones(20, 5), torch.randn(3, 1)], ids=["collapsed", "few"]
)
def test_maps_of_features_without_structure_are_finite(features: torch.Tensor) -> None:
    for flat in flatten(features):
        assert flat.points.shape == (len(features), 2)
        assert flat.points.isfinite().all()


def test_images_of_any_number_of_channels_can_be_shown() -> None:
    for channels, shape in ((1, (8, 8)), (2, (8, 8)), (3, (8, 8, 3)), (5, (8, 8))):
        data = ContrastiveDataModule("digits")
        data.mean = data.std = (0.5,) * channels
        (shown,) = displayable(torch.zeros(1, channels, 8, 8), data)
        assert shown.shape == shape
        assert (shown == 0.5).all()


# Images without labels ----------------------------------------------------------------------------


@pytest.mark.long
def test_unlabelled_images_get_the_pictures_that_need_no_labels(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(130):
        pixels = torch.randint(0, 256, (9, 11, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
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
    assert "negatives: views of two images" in _texts(draw_similarities(unlabelled))


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
    _check_picture(page.images[0])
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
