"""Files written whole or not at all, and what is said and left behind where one cannot be."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from filling import no_file_above

from simclr_pl import UserError
from simclr_pl.writing import as_folder, beside, cannot_write, sweep, whole, write_text


def test_a_file_is_replaced_at_once_and_has_the_rights_of_others(tmp_path: Path) -> None:
    path, other = tmp_path / "a.txt", tmp_path / "b.txt"
    other.write_text("")
    write_text(path, "old")
    with whole(path) as file:
        file.write("neu ±".encode())
        file.flush()
        assert path.read_text() == "old"
    assert path.read_bytes() == "neu ±".encode()
    assert path.stat().st_mode == other.stat().st_mode
    assert sorted(tmp_path.iterdir()) == [path, other]


@pytest.mark.parametrize("writer", ["bytes", "torch", "numpy"])
def test_a_disk_without_room_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, writer: str
) -> None:
    path = tmp_path / "last.ckpt"
    path.write_text("old")
    write = {
        "bytes": lambda file: file.write(bytes(1_000_000)),
        "torch": lambda file: torch.save({"weights": torch.zeros(1_000_000)}, file),
        "numpy": lambda file: np.savez(file, weights=np.zeros(1_000_000)),
    }[writer]
    with (
        pytest.raises(UserError) as error,
        no_file_above(100_000),
        whole(path, "--out", "go on") as file,
    ):
        write(file)
    assert str(error.value) == (
        f"{path} cannot be written (File too large): give another --out; go on"
    )
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_writer_is_its_own_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "a") as file:
        file.write(bytes(1 // 0))
    with pytest.raises(FileNotFoundError), whole(tmp_path / "a"):
        (tmp_path / "absent").read_text()
    assert list(tmp_path.iterdir()) == []


def test_what_to_do_is_said_of_a_full_disk_and_of_a_folder_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    full = OSError(28, "No space left on device")
    said = f"{path} cannot be written (No space left on device): free some space on that disk"
    assert str(cannot_write(path, full)) == said
    assert str(cannot_write(path, full, "--out")) == f"{said}, or give another --out"
    path = tmp_path / "gone" / "a"
    with pytest.raises(UserError) as error:
        write_text(path, "text")
    assert f"{path} cannot be written (there is no folder {path.parent}): " in str(error.value)


def test_writers_at_one_time_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a"
    texts = [str(number) * 10_000 for number in range(8)]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_has_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    beside(tmp_path / "last.ckpt").touch()
    other = beside(tmp_path / "report.html")
    kept = [tmp_path / "last.ckpt", tmp_path / ".lock", tmp_path / "a.tmp", other]
    for path in kept:
        path.touch()
    sweep(tmp_path, "last.ckpt")
    sweep(tmp_path / "absent")
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(set(kept) - {other})


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("hub:uoft-cs/cifar10", "hub-uoft-cs-cifar10"),
        ("torchvision:Flowers102", "torchvision-Flowers102"),
        ("mine.data.Cells", "mine.data.Cells"),
        ("hub:../my photos/", "hub-..-my-photos"),
        (":/", "data"),
    ],
)
def test_a_data_sets_name_is_one_folder(name: str, folder: str) -> None:
    assert as_folder(name) == folder
