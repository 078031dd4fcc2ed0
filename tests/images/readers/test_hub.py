"""`hub:PATH` and `hub:NAME`: what the library `datasets` has written, as images."""

import io
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from arrays import array, sentence
from hub_files import NAMES, labelled, named, png, read, saved, table
from noise import pixels
from PIL import Image

from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.data.sources import Splits
from simclr_pl.core.errors import UserError
from simclr_pl.core.views.simclr import SimCLRViews
from simclr_pl.images.datasets import load
from simclr_pl.images.fingerprint import fingerprint
from simclr_pl.images.readers.encoded import HubImages
from simclr_pl.images.readers.items import DatasetImages
from simclr_pl.images.workers.crops import Reading
from simclr_pl.images.workers.images import ImageFiles

pytestmark = pytest.mark.usefixtures("own_cache")


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


def test_odd_images_are_cut_as_those_of_a_folder_are(tmp_path: Path) -> None:
    files = [tmp_path / f"{place}" for place in range(6)]
    for file, content in zip(files, odd_images(), strict=True):
        file.write_bytes(content)
    given = saved(tmp_path / "data", table(odd_images() * 2, [0] * 12))
    source = read(given).train
    assert isinstance(source, HubImages)
    assert (source.channels, source.names) == (3, None)
    views, plan = SimCLRViews(16, seed=3), [torch.tensor([3, 5, 0, 1]), torch.tensor([2, 4])]
    mine = source.prepared(views, views, 0)
    theirs = ImageFiles(files, torch.zeros(6, dtype=torch.long)).prepared(views, views, 0)
    got = mine.batches(plan, 5, "both", training=True)
    for batch, want in zip(got, theirs.batches(plan, 5, "both", training=True), strict=True):
        assert batch.images.equal(want.images)
        assert batch.index.equal(want.index)


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
    with pytest.raises(UserError, match=r"item 7 has colours.*--data.dataset.channels 3"):
        read(given)
    assert read(named(given, channels=3)).train.channels == 3


def test_images_of_a_folder_keep_their_paths_as_names(tmp_path: Path) -> None:
    for place in range(12):
        write_imagefolder(tmp_path / "data", "train", pixels(12, 8 + place % 2, 8, 3))
        path = tmp_path / "data" / "train" / NAMES[place % 4] / f"{place:03}.png"
        path.write_bytes(png(pixels(8 + place, 8, 3, seed=place)))
    splits, folder = read(f"hub:{tmp_path / 'data'}"), load("folder", tmp_path / "data")
    assert splits.train.names == list(folder.train.names or ())
    assert splits.val.names == list(folder.val.names or ())
    assert splits.val.labels.equal(folder.val.labels)
    files = [{"bytes": None, "path": str(path)} for path in (tmp_path / "data").rglob("*.png")]
    kind = datasets.Features({"image": datasets.Image()})
    elsewhere = datasets.Dataset.from_dict({"image": files}, features=kind)
    source = HubImages(elsewhere, "image", "train", Reading(), tmp_path / "cache")
    assert source.names is None  # another folder's
    (tmp_path / "data" / "train" / "ant" / "004.png").unlink()
    views = SimCLRViews(8)
    with pytest.raises(UserError, match=r"train item \d+ cannot be read \(FileNotFoundError: "):
        list(source.prepared(views, views, 0).batches([torch.arange(12)], 0, "clean"))


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
    with pytest.raises(UserError, match=r"of images \(img, mask\): .*dataset.image NAME"):
        read(given)
    with pytest.raises(UserError, match=r"of labels \(label, coarse\): .*dataset.label NAME"):
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


def test_parquet_without_the_librarys_notes_is_read_too(tmp_path: Path) -> None:
    images = [{"bytes": png(image), "path": f"{i}.png"} for i, image in enumerate(pixels(40, 8, 8))]
    columns = {"picture": images, "labels": [i % 4 for i in range(40)]}
    path = tmp_path / "plain.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    splits = read(f"hub:{path}")
    assert array(splits.train).images.equal(torch.from_numpy(pixels(40, 8, 8))[:, None])
    assert whole_labels(splits) == [i % 4 for i in range(40)]
    plain = {"raw": [image["bytes"] for image in images], "text": ["a"] * 40}
    pyarrow.parquet.write_table(pyarrow.table(plain), path)
    with pytest.raises(UserError, match="no column of images, but raw"):
        read(f"hub:{path}")
    assert len(read(named(f"hub:{path}", image="raw")).train) == 40
    with pytest.raises(UserError, match="train item 0 cannot be"):
        read(named(f"hub:{path}", image="text"))


def test_what_has_no_image_or_no_train_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = datasets.Dataset.from_dict({"text": ["a", "b"]})
    with pytest.raises(UserError, match=r"has no column of images, but text \(string\): give"):
        read(saved(tmp_path / "words", words))
    odd = datasets.DatasetDict(unlabeled=labelled(), test=labelled(4), extra=labelled(4))
    given = saved(tmp_path / "odd", odd)
    with pytest.raises(UserError, match="no split called train, but unlabeled, test, extra: give"):
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
