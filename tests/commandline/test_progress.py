"""What a person sees: lines in a log file, a bar in a terminal, and how long it will still take."""

import fcntl
import os
import pty
import re
import struct
import termios
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from commands import QUICK, fit, run
from run_files import files, rows

from simclr_pl.__main__ import main
from simclr_pl.commandline import progress

LINE = re.compile(r"epoch \d+/\d+  step \d+/\d+  loss \d+\.\d{3}(, [a-z1 -]+ \d+\.\d{3})+")
LEFT = re.compile(r"  (\d+:)?\d\d:\d\d left")


def lines(out: str) -> list[str]:
    """The lines of progress; all but the first know how long it will still take."""
    found = [line for line in out.splitlines() if line.startswith("epoch ")]
    for number, line in enumerate(found):
        assert LINE.fullmatch(LEFT.sub("", line)), line
        assert number == 0 or LEFT.search(line), line
    return found


def test_without_a_terminal_progress_is_plain_lines_with_the_time_left(tmp_path: Path) -> None:
    outcome = fit(tmp_path / "run")
    shown = lines(outcome.out)
    assert shown[0].startswith("epoch 1/2  step 1/4  loss ")
    assert shown[-1].startswith("epoch 2/2  step 4/4  loss ")
    assert shown[-1].endswith("00:00 left")
    assert "probe val top-1" in shown[-1]
    assert len(shown) == 2  # the first step and the last; in between every ten seconds
    assert outcome.err == ""
    assert not re.search(r"[\r\x1b]", outcome.out)


def test_a_resumed_run_prints_no_line_without_numbers(tmp_path: Path) -> None:
    fit(tmp_path / "run")
    rarely = ("--trainer.log_every_n_steps", 50, "--trainer.max_epochs", 3)
    resumed = fit(tmp_path / "run", "--resume", *rarely).out
    assert "step 6/6  " in resumed
    assert not re.search(r"step \d+/\d+ *$", resumed, re.MULTILINE)


def test_a_line_comes_whenever_it_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    shown = lines(fit(tmp_path / "run").out)
    assert [line.split("  ")[1] for line in shown] == [
        "step 1/4", "step 2/4", "step 3/4", "step 4/4", "step 4/4",
    ]  # fmt: skip


def seconds(line: str) -> int:
    """The time left that a line gives."""
    found = LEFT.search(line)
    assert found, line
    parts = [int(part) for part in found[0].split()[0].split(":")]
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))


@pytest.mark.long
def test_the_time_left_is_that_of_the_whole_run_at_this_sessions_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_seconds = ("--trainer.max_time", "00:00:00:04")
    fit(tmp_path / "run", *few_seconds)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    begun = time.monotonic()
    longer = ("--trainer.max_epochs", "20000", *few_seconds)
    outcome = run("fit", *QUICK, "--resume", *longer, "--run_dir", tmp_path / "run")
    spent = time.monotonic() - begun
    assert outcome.code == 0, outcome
    last = lines(outcome.out)[-1]
    done = int(last.split("step ")[1].split("/")[0])
    assert "/40000  " in last
    # `spent` holds the imports and the set-up too: the pace is at most that.
    assert 0.3 < seconds(last) / (spent / (done - 4) * (40000 - done)) <= 1.1


def test_a_run_that_steps_alone_end_counts_steps(tmp_path: Path) -> None:
    for number, epochs in enumerate(("-1", "null")):
        ends = ("--trainer.max_epochs", epochs, "--trainer.max_steps", "3")
        out = fit(tmp_path / str(number), *ends).out
        assert re.search(r"^step 1/3  loss", out, re.MULTILINE), out
        assert re.search(r"^step 3/3  loss", out, re.MULTILINE), out
        assert not re.search(r"epoch -?\d*/", out)


def test_images_that_sit_out_an_epoch_are_counted_before_the_first_step(tmp_path: Path) -> None:
    out = fit(tmp_path / "run").out
    assert "; 50 images sit out each epoch" in out  # 1458 = 11 * 128 + 50
    out = fit(tmp_path / "even", "--data.batch_size", "162").out  # 1458 = 9 * 162
    assert "sit out" not in out


def test_fewer_steps_than_log_every_n_steps_still_log_the_loss(tmp_path: Path) -> None:
    fit(tmp_path / "run", "--trainer.log_every_n_steps", "50")
    logged = [row for row in rows(tmp_path / "run") if "train/loss" in row]
    assert logged


BEST = (
    "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
    *("--trainer.callbacks.monitor=knn/val_top1", "--trainer.callbacks.mode=max"),
)


def test_the_best_by_knn_is_kept_though_knn_comes_every_few_epochs(tmp_path: Path) -> None:
    often = ("--knn.every_n_epochs", "3", "--trainer.max_epochs", "7")
    outcome = fit(tmp_path / "run", *BEST, *often, "--trainer.callbacks.save_top_k=-1")
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt")}
    assert kept == {
        "last.ckpt",
        "epoch=2-step=6.ckpt",
        "epoch=5-step=12.ckpt",
        "epoch=6-step=14.ckpt",
    }
    assert outcome.err == ""


def test_a_number_that_never_comes_is_said_at_the_end(tmp_path: Path) -> None:
    out = fit(tmp_path / "run", *BEST, "--trainer.callbacks.monitor=knn/val_top").out
    assert "ModelCheckpoint has kept nothing, since no number is called knn/val_top" in out
    assert "knn/val_top1" in out


def test_a_profiler_prints_its_table(tmp_path: Path) -> None:
    out = fit(tmp_path / "run", "--trainer.profiler", "simple").out
    assert "Profiler Report" in out
    assert "optimizer_step" in out


def test_progress_can_be_turned_off(tmp_path: Path) -> None:
    outcome = fit(tmp_path / "run", "--trainer.enable_progress_bar", "false")
    assert lines(outcome.out) == []
    assert "global batch" in outcome.out


def in_a_terminal(*args: object, columns: int = 160) -> tuple[int, str]:
    """Runs a command with a real terminal as standard output; what was drawn there."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    drawn: list[bytes] = []

    def read() -> None:
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the other end is closed
                return
            if not piece:
                return
            drawn.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as terminal, redirect_stdout(terminal):
        code = main([str(arg) for arg in args])
    reader.join(30)
    os.close(master)
    return code, b"".join(drawn).decode()


def test_in_a_terminal_progress_is_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, drawn = in_a_terminal("fit", *QUICK, "--run_dir", tmp_path / "run")
    assert code == 0
    bars = [frame for frame in drawn.split("\r") if re.search(r"\b\d/4\b", frame)]
    assert len(bars) > 1, drawn
    assert "4/4" in bars[-1]
    assert "100%" in bars[-1]
    assert re.search(r"\[\d\d:\d\d<00:00", bars[-1])  # spent, and left
    for name in ("loss", "contrastive top-1", "probe val top-1", "val loss"):
        assert name in bars[-1]
    assert "epoch 1/2" in drawn
    assert not re.search(r"step \d/4", drawn)  # no plain lines beside it
    assert "global batch   128 images" in drawn  # the table stands above the bar
    assert drawn.index("global batch") < drawn.index(bars[0])
    assert "run directory" not in "".join(bars)  # and has its lines to itself
    assert capsys.readouterr().err == ""


def test_a_bar_in_eighty_columns_still_shows_the_probe(tmp_path: Path) -> None:
    _, drawn = in_a_terminal("fit", *QUICK, "--run_dir", tmp_path / "run", columns=80)
    last = [frame for frame in drawn.split("\r") if "4/4" in frame][-1]
    assert "loss" in last
    assert "probe" in last


def test_an_error_leaves_the_terminal_on_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explode = ("--model.learning_rate", "1e30")
    code, drawn = in_a_terminal("fit", *QUICK, *explode, "--run_dir", tmp_path / "run")
    assert code != 0
    assert drawn.endswith("\n")
    said = capsys.readouterr().err
    assert said.startswith("error: the loss is no longer a number")
    assert said.count("\n") == 1


def test_a_bar_resumed_begins_where_the_run_had_stopped(tmp_path: Path) -> None:
    fit(tmp_path / "run", "--checkpoint.keep_every_n_epochs", "1")
    folder = tmp_path / "run" / "checkpoints"
    (folder / "epoch=0001.ckpt").replace(folder / "last.ckpt")
    code, drawn = in_a_terminal("fit", *QUICK, "--resume", "--run_dir", tmp_path / "run")
    assert code == 0
    assert "2/4" in drawn
    assert "0/4" not in drawn
    assert "4/4" in drawn
    assert "checkpoints/last.ckpt" in files(tmp_path / "run")
