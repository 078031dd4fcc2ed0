"""A run that an older version began stays alive: it is read, scored, drawn, and goes on.

`fixtures/old_run` was made at commit 117eeb4, before the checkpoint named the stem that was built,
before validation images were kept, and before there were doors:

    fit --config configs/digits.yaml --trainer.max_epochs 2 --trainer.limit_train_batches 2
        --trainer.log_every_n_steps 1 --trainer.precision 64-true --data.image_size 8
        --data.batch_size 128 --model.encoder resnet10t --model.optimizer sgd
        --model.encoder_args '{"channels": [4, 4, 8, 8], "stem_type": "", "stem_width": 4}'
        --model.learning_rate 0.05 --model.warmup_epochs 0 --wandb off

`fixtures/old_run_end.pt` holds the weights that the same version had after two epochs more
(`fit --config old_run/config.yaml --trainer.max_epochs 4 --resume`).
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import run
from run_files import checkpoint, rows

from simclr_pl import SimCLR, load_encoder

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(FIXTURES / "old_run", tmp_path / "old"))


def test_it_is_small() -> None:
    files = (path for path in FIXTURES.rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in files) < 300_000


def test_its_encoder_is_loaded(old: Path) -> None:
    path = old / "checkpoints" / "last.ckpt"
    encoder = load_encoder(path)
    assert (encoder.image_size, encoder.mean, encoder.std) == (8, (0.3052,), (0.3757,))
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        model = SimCLR.load_from_checkpoint(path).eval()
        torch.testing.assert_close(encoder(images), model(images))
        assert encoder(images).shape == (3, 8)


def test_resumed_by_new_code_it_ends_as_by_old_code(old: Path) -> None:
    options = ("--config", old / "config.yaml", "--trainer.max_epochs", 4, "--resume")
    done = run("fit", *options, "--run_dir", old)
    assert (done.code, done.err) == (0, ""), done
    end = torch.load(FIXTURES / "old_run_end.pt", weights_only=True)
    now = checkpoint(old)["state_dict"]
    assert now.keys() == end.keys()
    # On the machine that made it all bits are equal; other processors round in other places.
    for name, weight in end.items():
        torch.testing.assert_close(now[name], weight, rtol=1e-9, atol=1e-12, msg=name)
    assert [int(row["step"]) for row in rows(old)] == list(range(8))


@pytest.mark.long
def test_it_is_scored_and_drawn(old: Path) -> None:
    assert run("linear", "--run_dir", old, "--split", "val", "--epochs", 2).code == 0
    (result,) = (old / "results").glob("linear-val-*.json")
    assert json.loads(result.read_text())["epoch"] == 2
    done = run("report", old)
    assert done.code == 0, done
    assert (old / "report.html").is_file()
