"""`hub:PATH` and `hub:NAME`: what the library `datasets` has written, as images."""

import io
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from arrays import array, sentence
from commands import QUICK, environment, finish, fit, start
from datamodules import ready
from noise import pixels, write_npz
from PIL import Image
from run_files import checkpoint, rows
from stopping import begin, check_same_run, differences, kill_when

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import ArrayImages, Splits
from simclr_pl.core.errors import UserError
from simclr_pl.core.views.simclr import SimCLRViews
from simclr_pl.images.datasets import load, prepare
from simclr_pl.images.fingerprint import fingerprint
from simclr_pl.images.readers.encoded import HubImages
from simclr_pl.images.readers.items import DatasetImages
from simclr_pl.images.workers.crops import Reading
from simclr_pl.images.workers.images import ImageFiles

ROOT = Path("nowhere")
NAMES = ["ant", "bee", "cat", "dog"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library keeps what it makes of files here."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def png(image: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def table(
    images: list[bytes | None], labels: list[Any] | None = None, kind: Any = None, **more: Any
) -> datasets.Dataset:
    """A column of encoded images, one of labels if there are some, and others."""
    columns = {"img": [image and {"bytes": image, "path": None} for image in images]}
    features = {"img": datasets.Image()}
    if labels is not None:
        columns["label"], features["label"] = labels, kind or datasets.ClassLabel(names=NAMES)
    for name, (values, feature) in more.items():
        columns[name], features[name] = values, feature
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def labelled(count: int = 40, *shape: int, seed: int = 0) -> datasets.Dataset:
    images = pixels(count, *(shape or (8, 9, 3)), seed=seed)
    return table([png(image) for image in images], [i % 4 for i in range(count)])


def read(given: Any, **options: Any) -> Splits:
    prepare(given, ROOT)
    return load(given, ROOT, **options)


def saved(path: Path, data: Any) -> str:
    data.save_to_disk(path)
    return f"hub:{path}"


def named(path: str, **args: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": args}


def whole_labels(splits: Splits) -> list[int]:
    """Train's labels with those that are held out."""
    labels = splits.train.labels.clone()
    assert splits.held is not None
    labels[splits.held] = splits.val.labels
    return labels.tolist()


# What is read -------------------------------------------------------------------------------------


def write_imagefolder(root: Path, split: str, images: np.ndarray[Any, Any]) -> None:
    for place, image in enumerate(images):
        path = root / split / NAMES[place % 4] / f"{place:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))


@pytest.mark.parametrize("kind", ["saved", "saved dict", "parquet", "folder of parquet", "images"])
def test_images_and_labels_come_as_they_were_written(tmp_path: Path, kind: str) -> None:
    path, data = tmp_path / "data", labelled()
    want, order = torch.from_numpy(pixels(40, 8, 9, 3)).permute(0, 3, 1, 2), torch.arange(40)
    if kind == "saved":
        given = saved(path, data)
    elif kind == "saved dict":
        both = datasets.DatasetDict(train=data, validation=labelled(8, seed=1), test=labelled(4))
        given = saved(path, both)
    elif kind == "images":
        write_imagefolder(path, "train", pixels(40, 8, 9, 3))
        write_imagefolder(path, "test", pixels(4, 8, 9, 3))
        order, given = (order % 4 * 100 + order).argsort(), f"hub:{path}"
    else:
        path.mkdir()
        file = path / ("train-00000-of-00001.parquet" if "folder" in kind else "mine.parquet")
        data.to_parquet(file)
        given = f"hub:{path if 'folder' in kind else file}"
    splits = read(given)
    train = array(splits.train)
    assert train.images.equal(want[order])
    assert splits.classes == tuple(NAMES)
    if kind == "saved dict":
        assert train.labels.tolist() == [0, 1, 2, 3] * 10
        assert (splits.held, len(splits.val)) == (None, 8)
    else:
        assert whole_labels(splits) == (order % 4).tolist()
    assert (splits.test is None) == (kind not in ("saved dict", "images"))
    assert fingerprint(read(given)) == fingerprint(splits)


def odd_images() -> list[bytes]:
    """Files of many kinds and sizes: each is decoded as one of a folder is."""
    colours = pixels(30, 24, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    made: list[tuple[Image.Image, dict[str, Any]]] = [
        (Image.fromarray(colours[:20, :, :3]), {"format": "JPEG", "exif": exif}),
        (Image.fromarray(colours, "RGBA"), {"format": "PNG"}),
        (Image.fromarray(colours, "CMYK"), {"format": "JPEG"}),
        (Image.fromarray(colours[:, :, 0].astype(np.uint16) * 200), {"format": "PNG"}),
        (Image.fromarray(colours[:, :, 1]), {"format": "PNG"}),
        (Image.fromarray(pixels(200, 180, 3)), {"format": "JPEG"}),
    ]
    found = []
    for image, how in made:
        file = io.BytesIO()
        image.save(file, **how)
        found.append(file.getvalue())
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_odd_images_are_cut_by_workers_as_those_of_a_folder_are(
    tmp_path: Path, workers: int
) -> None:
    files = [tmp_path / f"{place}" for place in range(6)]
    for file, content in zip(files, odd_images(), strict=True):
        file.write_bytes(content)
    given = saved(tmp_path / "data", table(odd_images() * 2, [0] * 12))
    source = read(given).train
    assert isinstance(source, HubImages)
    assert (source.channels, source.names) == (3, None)
    views, plan = SimCLRViews(16, seed=3), [torch.tensor([3, 5, 0, 1]), torch.tensor([2, 4])]
    mine = pickle.loads(pickle.dumps(source)).prepared(views, views, workers)
    theirs = ImageFiles(files, torch.zeros(6, dtype=torch.long)).prepared(views, views, 0)
    got = list(mine.batches(plan, 5, "both", training=True))
    mine.close()
    for batch, want in zip(got, theirs.batches(plan, 5, "both", training=True), strict=True):
        assert batch.images.equal(want.images)
        assert batch.index.equal(want.index)


def test_two_ranks_and_any_workers_see_the_same_images(tmp_path: Path) -> None:
    images = [png(image) for image in pixels(15, 20, 20, 3)] + [png(pixels(21, 20, 3))]
    source = read(saved(tmp_path / "data", table(images))).train
    views = SimCLRViews(8, seed=1)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    (whole,) = source.prepared(views, views, 0).batches([order], 2, "views")
    for half, rank in ((order[::2], 0), (order[1::2], 1)):
        twin = source.prepared(views, views, 1)
        (part,) = twin.batches([half], 2, "views")
        twin.close()
        assert part.images.equal(whole.images[rank::2])


def test_images_are_mapped_and_not_copied_to_workers(tmp_path: Path) -> None:
    images = [png(pixels(100, 100 + i % 2, 3, seed=i)) for i in range(40)]
    source = read(saved(tmp_path / "data", table(images))).train
    assert len(pickle.dumps(source)) < 30_000 < sum(map(len, images)) / 30


def test_a_gray_set_has_one_channel_and_one_image_in_colours_is_bad(tmp_path: Path) -> None:
    gray = [png(image) for image in pixels(40, 8, 8)]
    splits = read(saved(tmp_path / "gray", table(gray)))
    assert array(splits.train).images.equal(torch.from_numpy(pixels(40, 8, 8))[:, None])
    sizes = [*gray, png(pixels(9, 8))]
    source = read(saved(tmp_path / "sizes", table(sizes))).train
    views = SimCLRViews(8)
    (batch,) = source.prepared(views, views, 0).batches([torch.arange(41)], 0, "both")
    opened = DatasetImages([Image.open(io.BytesIO(file)) for file in sizes], "files", Reading())
    (want,) = opened.prepared(views, views, 0).batches([torch.arange(41)], 0, "both")
    assert batch.images.equal(want.images)
    assert batch.images.shape == (41, 3, 1, 8, 8)
    mixed = gray * 10
    mixed[7] = png(pixels(8, 8, 3))
    given = saved(tmp_path / "mixed", table(mixed))
    with pytest.raises(UserError, match=r"train item 7 has colours.*write channels: 3 below"):
        read(given)
    assert read(named(given, channels=3)).train.channels == 3


def test_images_of_a_folder_keep_their_paths_as_names(tmp_path: Path) -> None:
    for place in range(12):
        write_imagefolder(tmp_path / "data", "train", pixels(12, 8 + place % 2, 8, 3))
        path = tmp_path / "data" / "train" / NAMES[place % 4] / f"{place:03}.png"
        path.write_bytes(png(pixels(8 + place, 8, 3, seed=place)))
    splits, folder = read(f"hub:{tmp_path / 'data'}"), load("folder", tmp_path / "data")
    assert splits.train.names == folder.train.names
    assert splits.val.names == folder.val.names
    assert splits.val.labels.equal(folder.val.labels)


# Bad images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[8], [8, 9]])
@pytest.mark.parametrize(
    ("bad", "why"),
    [(png(pixels(20, 20, 3))[:700], "cannot be decoded"), (b"", "cannot be"), (None, "is empty")],
)
def test_a_bad_item_is_named_or_left_out(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sizes: list[int],
    bad: bytes | None,
    why: str,
) -> None:
    images: list[bytes | None] = [png(pixels(8, sizes[i % len(sizes)], 3)) for i in range(200)]
    images[17] = bad
    given = saved(tmp_path / "data", table(images, [i % 4 for i in range(200)]))
    views, plan = SimCLRViews(8), [torch.arange(200)]
    with pytest.raises(UserError, match=rf"{given} train item 17 {why}"):
        list(read(given).train.prepared(views, views, 0).batches(plan, 0, "clean"))
    splits = read(given, on_bad_image="skip")
    (batch,) = splits.train.prepared(views, views, 0).batches(plan, 0, "clean")
    assert batch.index.tolist() == [i for i in range(200) if i != 17]
    assert f"{given} train item 17 is left out (" in capsys.readouterr().out


# Columns and splits -------------------------------------------------------------------------------


def test_columns_are_named_where_there_are_several(tmp_path: Path) -> None:
    images = [png(image) for image in pixels(40, 8, 8, 3)]
    masks = [{"bytes": png(image), "path": None} for image in pixels(40, 8, 8, 3, seed=1)]
    coarse = ([i % 2 for i in range(40)], datasets.ClassLabel(names=["low", "high"]))
    words = ([NAMES[i % 3] for i in range(40)], datasets.Value("string"))
    numbers = ([3 + i % 2 for i in range(40)], datasets.Value("int32"))
    mask = (masks, datasets.Image())
    more = {"mask": mask, "coarse": coarse, "word": words, "number": numbers}
    given = saved(tmp_path / "data", table(images, [i % 4 for i in range(40)], **more))
    with pytest.raises(UserError, match=r"several columns of images \(img, mask\): write.*image: "):
        read(given)
    with pytest.raises(UserError, match=r"several columns of labels \(label, coarse\): .*label: "):
        read(named(given, image="mask"))
    assert read(named(given, image="mask"), labels="none").classes == ()
    splits = read(named(given, image="mask", label="coarse"))
    assert splits.classes == ("low", "high")
    want = torch.from_numpy(pixels(40, 8, 8, 3, seed=1)).permute(0, 3, 1, 2)
    assert array(splits.train).images.equal(want)
    by_word = read(named(given, image="img", label="word"))
    assert by_word.classes == ("ant", "bee", "cat")
    assert whole_labels(by_word) == [i % 3 for i in range(40)]
    assert read(named(given, image="img", label="number")).classes == ("3", "4")
    with pytest.raises(UserError, match=r"init_args.image is 'imgs', but .* columns img, label"):
        read(named(given, image="imgs"))
    with pytest.raises(UserError, match=r"takes no argument 'images'.*did you mean 'image'"):
        read(named(given, images="img"))


def test_a_column_of_whole_numbers_called_label_is_one_of_labels(tmp_path: Path) -> None:
    images, whole = [png(image) for image in pixels(40, 8, 8, 3)], datasets.Value("int64")
    numbers = [None if i == 3 else 5 + i % 2 for i in range(40)]
    splits = read(saved(tmp_path / "numbers", table(images, numbers, whole)))
    assert (splits.classes, whole_labels(splits)[3]) == (("5", "6"), UNLABELLED)
    vectors = table(images, [[1, 2]] * 40, datasets.List(whole))
    assert read(saved(tmp_path / "vectors", vectors)).classes == ()
    with pytest.raises(UserError, match=r"the column label .* labels must be ClassLabel"):
        read(named(f"hub:{tmp_path / 'vectors'}", label="label"))


def test_what_has_no_image_or_no_train_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = datasets.Dataset.from_dict({"text": ["a", "b"]})
    with pytest.raises(UserError, match=r"has no column of images, but text \(string\): write"):
        read(saved(tmp_path / "words", words))
    odd = datasets.DatasetDict(unlabeled=labelled(), test=labelled(4), extra=labelled(4))
    given = saved(tmp_path / "odd", odd)
    with pytest.raises(UserError, match="no split called train, but unlabeled, test, extra: write"):
        read(given)
    splits = read(named(given, train="unlabeled"))
    assert (len(splits.train), splits.test and len(splits.test)) == (40, 4)
    assert f"{given}: splits that are left out: extra\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"init_args.val is 'none', but .* has unlabeled, test"):
        read(named(given, train="unlabeled", val="none"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    for name, said in [
        ("broken.parquet", "cannot be read"),
        ("nothing/at/all", "no file or folder"),
    ]:
        with pytest.raises(UserError, match=said) as caught:
            read(f"hub:{tmp_path / name}")
        assert sentence(caught)
    with pytest.raises(UserError, match=r"a stream has no images by number.*leave out streaming"):
        read(named(given, streaming=True))


# The hub itself -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_internet")
def test_without_internet_a_sentence_comes_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        prepare("hub:nobody/nothing", ROOT)
    assert time.monotonic() - begun < 5
    said = sentence(caught)
    assert "hub:nobody/nothing is not in the cache of `datasets`, and the Hugging Face hub" in said
    assert "load_dataset('nobody/nothing').save_to_disk('FOLDER')" in said


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    address = "https://hub.invalid"  # a name that no server has, with internet or without
    args = ("--data.dataset", "hub:nobody/nothing", "--run_dir", tmp_path / "run")
    process = start(
        "fit", *QUICK, *args, fresh=True, env=environment(HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
    )
    begun = time.monotonic()
    outcome = finish(process)
    assert time.monotonic() - begun < 60
    assert "cannot be reached" in outcome.sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_internet")
def test_what_was_downloaded_before_is_read_without_internet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled().to_parquet(tmp_path / "train.parquet")
    read(f"hub:{tmp_path / 'train.parquet'}")
    cache, commit = tmp_path / "cache", "c0ffee" + "0" * 34
    (made,) = {path.parent for path in cache.glob("parquet/*/*/*/*.arrow")}
    place = cache / "nobody___nothing" / "default" / "0.0.0" / commit
    shutil.copytree(made, place)
    (place / "parquet-train.arrow").rename(place / "nothing-train.arrow")
    info = place / "dataset_info.json"
    config = made.parent.parent.name
    info.write_text(info.read_text().replace(f'"{config}"', '"default"'))
    assert len(read("hub:nobody/nothing").train) == 40
    assert f"hub:nobody/nothing: commit {commit[:12]}, which was" in capsys.readouterr().out
    assert len(read(named("hub:nobody/nothing", revision="c0ffee")).train) == 40
    with pytest.raises(UserError, match="cannot be reached"):
        read(named("hub:nobody/nothing", revision="v2"))


# Runs ---------------------------------------------------------------------------------------------


def test_the_same_pixels_as_npz_and_from_a_hub_give_the_same_curve(tmp_path: Path) -> None:
    file = write_npz(tmp_path / "set.npz", 8, 8, train=160)
    images = [png(image) for image in pixels(160, 8, 8)]
    given = saved(tmp_path / "set", table(images, [i % 4 for i in range(160)]))
    short = ("--data.batch_size", "64")
    fit(tmp_path / "one", *short, "--data.dataset", "npz", "--data.root", file)
    fit(tmp_path / "two", *short, "--data.dataset", given)
    assert rows(tmp_path / "one") == rows(tmp_path / "two")
    one, two = (checkpoint(tmp_path / name)["state_dict"] for name in ("one", "two"))
    assert differences(one, two) == []
    assert isinstance(ready(given).whole.train, ArrayImages)


def test_a_run_on_a_hubs_folder_that_is_killed_ends_as_one_left_alone(tmp_path: Path) -> None:
    images = [png(pixels(12 + i % 3, 12, 3, seed=i)) for i in range(160)]
    given = saved(tmp_path / "set", table(images, [i % 4 for i in range(160)]))
    recipe = (
        *("--data.dataset", given, "--data.batch_size", "32", "--data.num_workers", "1"),
        *("--trainer.limit_train_batches", "4", "--trainer.max_epochs", "4"),
        *("--checkpoint.every_n_steps", "3"),
    )
    fit(tmp_path / "whole", *recipe)
    run = tmp_path / "run"
    process = begin(run, *QUICK, *recipe, "--resume")
    kill_when(process, lambda: len(rows(run)) >= 6)
    assert 3 <= checkpoint(run)["global_step"] < 16
    assert fit(run, *recipe, "--resume").err == ""
    check_same_run(run, tmp_path / "whole")
