"""metrics.csv: a row a step, on disk at once, whole after a kill, continued by a resume."""

import csv
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import environment, signal_when

from simclr_pl.run.metrics import MetricsFile, read_metrics


def table(path: Path) -> list[list[str]]:
    """The file as anybody's CSV reader sees it; every row as wide as the first."""
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    assert {len(line) for line in lines} == {len(lines[0])}
    return lines


def test_metrics_of_one_step_share_a_row(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"train/loss": 1.5, "epoch": 0}, 0)
    log.log_metrics({"train/loss": 1.25, "epoch": 0}, 1)
    log.log_metrics({"val/loss": 2.0, "epoch": 0}, 1)
    log.log_metrics({"train/loss": 1.0, "epoch": 1}, 2)
    assert table(log.path) == [
        ["step", "epoch", "train/loss", "val/loss"],
        ["0", "0", "1.5", ""],
        ["1", "0", "1.25", "2.0"],
        ["2", "1", "1.0", ""],
    ]


def test_a_number_is_on_disk_as_soon_as_it_is_logged_and_a_new_name_is_a_new_column(
    tmp_path: Path,
) -> None:
    log = MetricsFile(tmp_path / "below" / "metrics.csv")
    expected = []
    for step in range(5):
        log.log_metrics({f"m{step}": step / 4, "epoch": step}, step)
        expected.append({"step": str(step), "epoch": str(step), f"m{step}": str(step / 4)})
        assert read_metrics(log.path) == expected
        assert table(log.path)[0] == ["step", "epoch", *(f"m{s}" for s in range(step + 1))]


def test_numbers_are_kept_to_the_last_bit(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "metrics.csv")
    value = 1 / 3
    log.log_metrics({"a": value}, 0)
    assert float(read_metrics(log.path)[0]["a"]) == value


def test_the_last_of_two_values_for_one_step_counts(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"a": 0.123456789, "b": 1.0}, 0)
    log.log_metrics({"a": 0.5}, 0)  # shorter than what it replaces
    log.log_metrics({"a": 0.25}, 1)
    assert table(log.path) == [["step", "epoch", "a", "b"], ["0", "", "0.5", "1.0"],
                               ["1", "", "0.25", ""]]  # fmt: skip


def written(tmp_path: Path) -> Path:
    """Ten steps, an epoch every two."""
    log = MetricsFile(tmp_path / "metrics.csv")
    for step in range(10):
        log.log_metrics({"train/loss": float(step), "epoch": step // 2}, step)
        if step % 2:
            log.log_metrics({"val/loss": step + 0.5, "epoch": step // 2}, step)
    return log.path


def test_a_resume_cuts_back_to_its_checkpoint_and_goes_on_in_the_same_columns(
    tmp_path: Path,
) -> None:
    path = written(tmp_path)
    before = path.read_text()
    resumed = MetricsFile(path, resume_at=7)
    assert path.read_text() == before  # nothing is cut until there is something to add
    for step in range(7, 10):
        resumed.log_metrics({"train/loss": float(step), "epoch": step // 2}, step)
        if step % 2:
            resumed.log_metrics({"val/loss": step + 0.5, "epoch": step // 2}, step)
    assert path.read_text() == before


def test_a_resume_in_mid_step_adds_to_the_checkpoints_last_row(tmp_path: Path) -> None:
    path = written(tmp_path)
    resumed = MetricsFile(path, resume_at=8)
    resumed.log_metrics({"probe/train_top1": 0.5}, 7)  # an epoch's end, behind its last step
    last = {"train/loss": "7.0", "val/loss": "7.5", "probe/train_top1": "0.5"}
    assert read_metrics(path)[-1] == {"step": "7", "epoch": "3", **last}


def test_a_resume_without_a_file_starts_one(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "metrics.csv", resume_at=4)
    log.log_metrics({"a": 1.0}, 4)
    assert read_metrics(log.path) == [{"step": "4", "a": "1.0"}]


def test_a_new_run_does_not_go_on_in_an_old_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    MetricsFile(path).log_metrics({"a": 1.0}, 0)
    assert read_metrics(path) == [{"step": "0", "a": "1.0"}]


def test_a_torn_last_row_is_left_out_wherever_it_is_torn(tmp_path: Path) -> None:
    log = MetricsFile(tmp_path / "metrics.csv")
    for step in range(2):
        log.log_metrics({"train/loss": 5.773403167724609 + step, "epoch": 0}, step)
    whole = log.path.read_bytes()
    rows = read_metrics(log.path)
    begin = whole.rindex(b"1,0,")
    for end in range(begin, len(whole)):
        log.path.write_bytes(whole[:end])
        assert read_metrics(log.path) in (rows, rows[:1]), whole[begin:end]


def test_a_resume_goes_on_behind_a_torn_row(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_text()
    path.write_bytes(path.read_bytes()[:-7])
    resumed = MetricsFile(path, resume_at=9)
    resumed.log_metrics({"train/loss": 9.0, "epoch": 4}, 9)
    resumed.log_metrics({"val/loss": 9.5, "epoch": 4}, 9)
    assert path.read_text() == whole


def test_an_empty_file_holds_no_rows(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("")
    assert read_metrics(tmp_path / "metrics.csv") == []


WRITER = """
import sys
from pathlib import Path
from simclr_pl.run.metrics import MetricsFile

log = MetricsFile(Path(sys.argv[1]))
for step in range(1_000_000):
    log.log_metrics({"train/loss": step / 8, "epoch": step // 10}, step)
    if step % 10 == 9:  # a new column every so often: the file is written anew
        log.log_metrics({f"m{step // 100 % 50}": step / 16, "epoch": step // 10}, step)
"""


def test_a_killed_writer_leaves_every_step_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, env=environment(), text=True) as process:
        signal_when(
            process, lambda: path.exists() and len(read_metrics(path)) > 300, signal.SIGKILL
        )
        assert process.wait(30) == -signal.SIGKILL
    rows = read_metrics(path)
    assert len(rows) > 300
    assert [row["step"] for row in rows] == [str(step) for step in range(len(rows))]
    for step, row in enumerate(rows[:-1]):
        assert float(row["train/loss"]) == step / 8
        if step % 10 == 9:
            assert float(row[f"m{step // 100 % 50}"]) == step / 16


def test_a_number_without_a_step_belongs_to_the_last_one(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.log_metrics({"early": 1.0})
    file.log_metrics({"a": 1.0}, 3)
    file.log_metrics({"b": 2.0})
    assert [row["step"] for row in read_metrics(file.path)] == ["0", "3"]
    assert read_metrics(file.path)[-1] == {"step": "3", "a": "1.0", "b": "2.0"}


def test_what_is_no_number_is_said_once_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    for step in (0, 1):
        mixed: Any = {"a": 1.0, "note": "a text", "nothing": None}
        file.log_metrics(mixed, step)
    assert read_metrics(file.path) == [{"step": "0", "a": "1.0"}, {"step": "1", "a": "1.0"}]
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in said] == ["note", "nothing"]


def test_rows_that_an_older_version_wrote_without_a_step_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,epoch,a\n0,0,1.0\nNone,,2.0\n1,0,3.0\n")
    assert [row["step"] for row in read_metrics(path)] == ["0", "1"]
    MetricsFile(path, 1).log_metrics({"a": 4.0}, 1)
    assert [row["a"] for row in read_metrics(path)] == ["1.0", "4.0"]
