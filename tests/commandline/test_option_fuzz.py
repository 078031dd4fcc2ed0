"""Hostile options, drawn by a seed: a command ends well, or with a sentence of its own."""

import contextlib
import random
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import QUICK, Outcome, run

from simclr_pl.__main__ import COMMANDS
from simclr_pl.commandline.call import OneSentence

FEW, MANY = 25, 400
"""Draws of the ordinary test and of the slow one."""

LONGEST_S = 60
"""Of a draw: an option that asks for more work has to be listed in `COSTLY`."""

VALUES = (
    *("-1", "0", "1", "2", "1.5", "-0.5", "1e400", ".nan", ".inf", "-.inf", "null", "true"),
    *("", " ", "abc", "x" * 300, "ü/☃", "a b", "..", "/", "/dev/null", "/proc/nothing", "no/such"),
    *("[]", "[1]", "[-1, -2]", "[a, b]", "{}", "{a: 1}", "[[1], {a: 2}]", "{a: [1", "'", "\\", "*"),
    *("99999999999999999999999", "-99999999999999999999999", "0x10", "=", "%s", "HERE"),
)
"""Of any type; HERE is a folder that is there."""

COSTLY = re.compile(
    r"--(trainer\.(max_\w+|min_\w+|accelerator|devices|strategy|num_nodes|limit_\w+|overfit_\w+)"
    r"|data\.(dataset|root|batch_size|image_size|num_workers)|model\.encoder(_args)?|.*epochs"
    r"|seconds|num_workers|draws|labels_per_class|seeds|.*compiled|local|model|data|trainer)"
)
"""Options of which a legal value may take long, start processes, or load from afar."""

CHEAP = ("-1", "abc", "[[1]]", "{a: 1}", ".nan", "x" * 300, "")
"""What those are given: none of it asks for work."""

EXCEPTION = re.compile(r"\b[A-Z]\w*(Error|Exception|Interrupt)\b|--debug shows where|Traceback")


class _ParserSeenError(Exception):
    pass


def options_of(command: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of a command's options, from its own parser."""
    found: set[str] = set()

    def keep(parser: Any, *args: Any, **kwargs: Any) -> None:
        choices = (a.choices for a in parser._actions if isinstance(a.choices, dict))
        for each in (parser, *(p for names in choices for p in names.values())):
            found.update(name for action in each._actions for name in action.option_strings)
        raise _ParserSeenError

    with monkeypatch.context() as patch:
        patch.setattr(OneSentence, "parse_args", keep)
        run(command, *QUICK, "--run_dir", "nowhere") if command == "fit" else run(command)
    return sorted(n for n in found if re.fullmatch(r"--(?!.*(help|print_config))[\w.]+", n))


def base_of(command: str, source: Path, folder: Path) -> tuple[object, ...]:
    """Options with which a command has little to do."""
    few = ("--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1")
    return {
        "fit": (*QUICK, "--run_dir", folder / "new"),
        "bench": (*QUICK, "--seconds", "0.1"),
        "doctor": (*QUICK, "--images", "20"),
        "stats": ("--data.dataset", "digits", "--images", "20"),
        "validate": ("--run_dir", source, *few, "--wandb", "off"),
        "test": ("--run_dir", source, *few, "--wandb", "off"),
        "predict": ("--run_dir", source, "--trainer.limit_predict_batches", "1"),
        "linear": ("--run_dir", source, "--epochs", "1", "--wandb", "off"),
        "knn": ("--run_dir", source, "--wandb", "off"),
        "finetune": (
            *("--run_dir", source, "--label_fraction", "0.1", "--epochs", "1"),
            *("--out", folder / "tuned", "--wandb", "off"),
        ),
        "compare": ("--run_dir", source, "--draws", "1", "--wandb", "off"),
        "pack": (folder, folder / "packed"),
        "sweep": ("--local", "1", "--out", folder / "sweep"),
        "views": ("--run_dir", source, "--out", folder / "views.png", "--images", "2"),
        "report": (source, "--out", folder / "report", "--curves_only", "true"),
    }.get(command, ())


def draw(seed: int, options: dict[str, list[str]], source: Path, folder: Path) -> list[str]:
    """A command line, the same for the same seed."""
    drawn = random.Random(seed)
    command = drawn.choice(sorted(options))
    line = [command, *map(str, base_of(command, source, folder))]
    for name in drawn.sample(options[command], min(len(options[command]), drawn.choice((1, 1, 2)))):
        value = drawn.choice(CHEAP if COSTLY.fullmatch(name) else VALUES)
        value = str(folder) if value == "HERE" else value
        line += [f"{name}={value}"] if drawn.random() < 0.7 else [name, value]
    return line


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Ends what takes longer, and fails the test."""

    def over(*args: object) -> None:
        raise pytest.fail.Exception(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def wrong_with(outcome: Outcome) -> str:
    """What a user should not see; empty where all is well."""
    if outcome.code == 0:
        return ""
    lines = [line for line in outcome.err.splitlines() if line]
    sentences = [line for line in lines if line.startswith("error: ")]
    if len(sentences) != 1 or lines[-1] != sentences[0]:
        return f"no sentence: {outcome.err!r}"
    found = EXCEPTION.search(outcome.err)
    return f"{found[0]} in {sentences[0]}" if found else ""


def fuzz(
    seeds: range, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Counter[str], list[str]]:
    """Runs the command lines of some seeds; how they ended, and what was wrong."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    commands = [name for name in COMMANDS if name != "dashboard"]  # which asks a server
    options = {name: options_of(name, monkeypatch) for name in commands}
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    for seed in seeds:
        here = folder / str(seed)
        run_of_its_own = here / "source"
        shutil.copytree(source, run_of_its_own)
        line = draw(seed, options, run_of_its_own, here)
        with limited(LONGEST_S):
            outcome = run(*line)
        ends["done" if outcome.code == 0 else "refused"] += 1
        if problem := wrong_with(outcome):
            shown = " ".join(line).replace("x" * 300, "<300 x>")
            wrong.append(f"seed {seed}: {shown}\n  {problem}")
        shutil.rmtree(here)
    return ends, wrong


def test_every_command_has_options_to_draw_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(options_of("fit", monkeypatch)) > 80
    for command in ("linear", "knn", "views", "compare", "report", "pack", "sweep", "bench"):
        assert len(options_of(command, monkeypatch)) > 2, command


@pytest.mark.filterwarnings("ignore")
@pytest.mark.long
def test_a_few_hostile_options_end_in_a_sentence_or_well(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, wrong = fuzz(range(FEW), source, tmp_path / "fuzz", monkeypatch)
    assert not wrong, "\n".join(wrong)
    assert ends["refused"] > FEW // 4, ends


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
def test_many_hostile_options_end_in_a_sentence_or_well(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, wrong = fuzz(range(1000, 1000 + MANY), source, tmp_path / "fuzz", monkeypatch)
    print(f"{MANY} command lines: {dict(ends)}, {len(wrong)} of them wrong")
    assert not wrong, "\n".join(wrong)
