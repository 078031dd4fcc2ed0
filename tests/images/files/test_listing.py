"""Listings of folders: kept between starts, and walked anew where anything may have changed."""

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simclr_pl import UserError
from simclr_pl.images.files import kept, listing
from simclr_pl.images.files.listing import LeftOut, Listing, images_below
from simclr_pl.images.names import Names
from simclr_pl.locks import alone


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose listing is kept, however small and new it is."""
    monkeypatch.setattr(kept, "LEAST", 1)
    monkeypatch.setattr(kept, "SETTLED_S", -60.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "set"
    for name in ("b.png", "a/c/1.png", "a/c/2.jpg", "a/d.png", "a/z.png", "a.b/3.png", "a/c.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    for name in (".hidden", "note.txt", "a/one.heic", "a/two.psd", "README"):
        (root / name).write_bytes(b"none")
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "deep" / "4.png").write_bytes(b"")
    (tmp_path / "farther").mkdir()
    (root / "a" / "far").symlink_to(tmp_path / "far")
    (root / "a" / "again").symlink_to(root / "a.b")
    # (A test may be faster than the clock of a file system.)
    for path in [root, *root.rglob("*"), root / "a" / "far" / "deep"]:
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600))
    return root


def look(root: Path) -> tuple[list[bytes], dict[str, int], str, list[tuple[Path, str]]]:
    left = LeftOut()
    left.add("of kinds that are not read", ".other")
    found = images_below(root, left)
    return list(found.names), found.folders, str(left), left.unread


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that have been walked."""
    walked, walk = list[str](), listing._walked

    def noted(root: str, *more: Any) -> Listing:
        walked.append(root)
        return walk(root, *more)

    monkeypatch.setattr(listing, "_walked", noted)
    return walked


def test_files_lie_in_the_order_of_their_folders_names(root: Path) -> None:
    names, folders, said, _ = look(root)
    parts = ["a/c/1.png", "a/c/2.jpg", "a/d.png", "a/far/deep/4.png", "a/z.png", "a.b/3.png"]
    assert [name.decode() for name in names] == ["b.png", *parts]
    assert folders == {"": 1, "a": 5, "a.b": 1}
    assert "1 folders that were there already (a/again)" in said


def test_a_second_start_finds_the_kept_listing(root: Path, walks: list[str]) -> None:
    first = look(root)
    assert look(root) == first
    assert len(walks) == 1
    assert len(list((root.parent / "cache" / "simclr_pl" / "listings").iterdir())) == 1


def _file_comes(root: Path) -> None:
    (root / "a" / "c" / "0.png").write_bytes(b"")


def _file_goes(root: Path) -> None:
    (root / "a" / "far" / "deep" / "4.png").unlink()


def _file_takes_anothers_place(root: Path) -> None:
    folder = root / "a" / "c"
    before = folder.stat()
    (folder / "1.png").rename(folder / "5.png")
    while (
        now := folder.stat()
    ).st_ctime_ns == before.st_ctime_ns or now.st_mtime != before.st_mtime:
        os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync and tar do


def _folder_goes(root: Path) -> None:
    (root / "a" / "c").rename(root / "a" / "e")


def _file_without_suffix_becomes_an_image(root: Path) -> None:
    Image.new("RGB", (4, 4)).save(root / "README", "PNG")


def _link_leads_elsewhere(root: Path) -> None:
    (root.parent / "far").rename(root.parent / "fourth")
    (root.parent / "farther").rename(root.parent / "far")


def _folder_is_another_one(root: Path) -> None:
    root.rename(root.parent / "old")
    (root / "new").mkdir(parents=True)
    (root / "new" / "1.png").write_bytes(b"")


@pytest.mark.parametrize(
    "change",
    [
        _file_comes,
        _file_goes,
        _file_takes_anothers_place,
        _folder_goes,
        _file_without_suffix_becomes_an_image,
        _link_leads_elsewhere,
        _folder_is_another_one,
    ],
)
def test_what_has_changed_is_walked_anew(
    root: Path, walks: list[str], change: Callable[[Path], None]
) -> None:
    first = look(root)
    change(root)
    now = look(root)
    assert now != first
    assert len(walks) == 2
    assert look(root) == now
    assert len(walks) == 2


def test_what_times_do_not_vouch_for_is_walked_anew(
    root: Path, walks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("SETTLED_S", 10.0), ("LEAST", 10**4), ("WITH_TIMES", frozenset({"fuse"}))):
        with monkeypatch.context() as patch:
            patch.setattr(kept, name, value)
            look(root)
        look(root)
        assert len(walks) == 2, name
        walks.clear()
        (root / "a").touch()
    (root / "a" / "link.png").symlink_to(root / "b.png")
    look(root)
    (root / "b.png").rename(root / "c.png")
    assert "1 links to nothing (a/link.png)" in look(root)[2]
    look(root)
    assert len(walks) == 3


def test_a_listing_of_other_kinds_of_files_is_not_taken(root: Path, walks: list[str]) -> None:
    (root / "a" / "numbers.npy").write_bytes(b"")
    assert len(images_below(root, LeftOut()).names) == 7
    assert len(images_below(root, LeftOut(numbers=True)).names) == 8
    assert len(walks) == 2


@pytest.mark.parametrize("broken", ["cut", "empty", "other", "folder", "unwritable"])
def test_a_listing_that_cannot_be_read_or_kept_is_walked(
    root: Path, walks: list[str], broken: str
) -> None:
    first = look(root)
    (file,) = (root.parent / "cache" / "simclr_pl" / "listings").iterdir()
    content = file.read_bytes()
    file.unlink()
    if broken == "folder":
        file.mkdir()
    elif broken == "unwritable":
        file.parent.rmdir()
        file.parent.write_bytes(b"")
    elif broken == "other":
        np.savez(file, letters=np.zeros(1, np.uint8))
    else:
        file.write_bytes(content[: len(content) // 2] if broken == "cut" else b"")
    assert look(root) == first
    assert len(walks) == 2
    assert look(root) == first
    assert len(walks) == 2 + (broken in ("folder", "unwritable"))


def test_ranks_that_wait_for_a_walk_take_what_it_finds(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "SETTLED_S", 10.0)  # times would not vouch for so new a folder
    asked, walked = threading.Semaphore(0), list[int]()

    def ranks() -> tuple[int, int]:
        asked.release()
        return 0, 4

    def walk(looked: kept.Looked) -> kept.Found:
        looked.at(str(root))
        walked.append(len(walked))
        return Names.of([b"1", b"2"]), {"walk": len(walked)}

    monkeypatch.setattr(kept, "rank_and_world", ranks)
    found = list[Any]()
    others = [
        threading.Thread(target=lambda: found.append(kept.kept(str(root), "", walk)))
        for _ in range(3)
    ]
    file = kept.file_of(str(root))
    file.parent.mkdir(parents=True)
    with alone(file.with_suffix(f".{socket.gethostname()}.lock"), "to test"):
        for other in others:
            other.start()
            asked.acquire()
    for other in others:
        other.join()
    assert [(list(names), said) for names, said in found] == [([b"1", b"2"], {"walk": 1})] * 3
    assert kept.kept(str(root), "", walk)[1] == {"walk": 2}  # asked for later


def test_a_folder_that_cannot_be_read_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: str) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"set cannot be read .Permission denied.: give yourself"):
        look(root)
