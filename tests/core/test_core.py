"""The core: it is small, it stands alone, and it trains."""

import ast
import io
import shutil
import sys
import tokenize
from pathlib import Path

import pytest
from commands import REPOSITORY, called, environment

CORE = REPOSITORY / "simclr_pl" / "core"
FILES = sorted(CORE.rglob("*.py"))

MOST_LINES = 2_617
"""Lines of code in all: without blanks, comments and docstrings."""

LONGEST = 300
"""Lines of code of a file."""

_NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    tokenize.ENDMARKER,
}


def code_lines(text: str) -> int:
    """Lines on which there is code: tokens other than comments, outside of docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        for part in body if isinstance(body, list) else ():
            if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
                assert part.end_lineno is not None
                lines -= set(range(part.lineno, part.end_lineno + 1))
    return len(lines)


def test_code_is_counted_without_blanks_comments_and_docstrings() -> None:
    text = '"""A module.\n\nOf two.\n"""\n\nX = 1  # one\n"""Of it."""\n# a\n\n'
    text += 'def f():\n    """F."""\n'
    assert code_lines(text + '    return """\n    two\n    """\n') == 5


def test_the_core_is_read_in_an_afternoon() -> None:
    counts = {str(path.relative_to(CORE)): code_lines(path.read_text()) for path in FILES}
    assert sum(counts.values()) <= MOST_LINES, counts
    assert max(counts.values()) <= LONGEST, counts


TRAIN = """
import sys

# An installed package would lend what the copy lacks.
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(f).lower()]

import lightning as L
import torch
from sklearn.datasets import load_digits

import simclr_pl
from simclr_pl import ContrastiveDataModule, SimCLR, UserError
from simclr_pl.core.data.sources import ArrayImages, Splits

digits = load_digits()
images = torch.from_numpy(digits.images * 255 / 16).to(torch.uint8)[:, None]
labels = torch.from_numpy(digits.target)
train, val = ArrayImages(images[:1500], labels[:1500]), ArrayImages(images[1500:], labels[1500:])
data = ContrastiveDataModule(Splits(train, val, None, tuple("0123456789")), batch_size=64)
trainer = L.Trainer(
    max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(SimCLR("resnet18", optimizer="sgd", warmup_epochs=0), data)
print(simclr_pl.__file__, trainer.global_step, float(trainer.callback_metrics["train/loss"]))
try:
    ContrastiveDataModule("digits").prepare_data()
except UserError as error:
    print(error)
"""


def test_the_core_alone_trains(tmp_path: Path) -> None:
    package = tmp_path / "simclr_pl"
    shutil.copytree(CORE, package / "core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CORE.parent / "__init__.py", package)
    alone = environment(PYTHONPATH=str(tmp_path))
    done = called(sys.executable, "-c", TRAIN, cwd=tmp_path, env=alone)
    assert done.returncode == 0, done
    trained, refused = done.stdout.splitlines()[-2:]
    place, steps, loss = trained.split()
    assert (place, steps) == (str(package / "__init__.py"), "2")
    assert float(loss) == pytest.approx(4.8, abs=0.5)
    assert refused.startswith("data.dataset: there is no module 'simclr_pl.images'")
