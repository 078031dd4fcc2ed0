"""Fine-tuning against its definition: a literal loop from the formula, and what must not move."""

import math
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from commands import DRAWING, QUIET, fit
from ranks import ranks
from run_files import checkpoint
from torch import Tensor, nn

from simclr_pl import ContrastiveDataModule, UserError
from simclr_pl.core.batch import UNLABELLED
from simclr_pl.core.model.checkpoint import KEY
from simclr_pl.core.randomness import epoch_order
from simclr_pl.protocols.backbone import load_backbone
from simclr_pl.protocols.finetune import FineTuning
from simclr_pl.protocols.labelled_datamodule import LabelledDataModule, LabelledImages

# As the command does: head_only means it.
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")


@pytest.fixture(scope="module")
def pretrained(source: Path) -> dict[str, Any]:
    return checkpoint(source)


def labelled(**data: Any) -> LabelledDataModule:
    module = LabelledDataModule(0.1, **{"batch_size": 50, "seed": 2, **data})
    module.setup()
    return module


def model_of(
    pretrained: dict[str, Any], *, layers: int = 0, classes: int = 10, **options: Any
) -> FineTuning:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "it.ckpt"
        torch.save(pretrained, path)
        options = {"learning_rate": 0.3, "weight_decay": 1e-3, "seed": 0, **options}
        model = FineTuning(str(path), from_projector_layer=layers, **options)
    model.add_head(classes)
    return model


class Losses(L.Callback):
    """Of each step: this rank's loss, as the trainer gets it, and the learning rate."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.losses.append(float(args[1]["loss"].detach()))
        self.rates.append(float(trainer.logged_metrics["train/lr"]))


def train(
    model: FineTuning, data: LabelledDataModule, epochs: int = 3, **options: Any
) -> tuple[L.Trainer, Losses]:
    losses = Losses()
    settings = {"max_epochs": epochs, "use_distributed_sampler": False, "num_sanity_val_steps": 0}
    trainer = L.Trainer(**{**QUIET, **settings, **options}, callbacks=[losses])
    trainer.fit(model, data)
    return trainer, losses


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def backbone_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("head.")}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not one[name].equal(other[name])]


# A literal loop -----------------------------------------------------------------------------------


def literal(
    pretrained: dict[str, Any], layers: int, head_only: bool, data: LabelledDataModule, epochs: int
) -> tuple[dict[str, Tensor], list[float]]:
    """What the docstrings say, step by step, in float64, without Lightning.

    Returns:
        The weights at the end, and the loss of each step.
    """
    backbone = load_backbone(pretrained, "it", layers)
    network = nn.ModuleDict({"encoder": backbone.encoder, "projector": backbone.projector})
    network["head"] = nn.Linear(backbone.width, 10)
    network = network.double().train()
    nn.init.zeros_(network["head"].weight)
    nn.init.zeros_(network["head"].bias)
    if head_only:
        network["encoder"].eval()
        network["projector"].eval()
    weights = [p for p in network.parameters() if p.requires_grad]
    if head_only:
        weights = list(network["head"].parameters())
    velocity = [torch.zeros_like(p) for p in weights]
    train, batch = data.splits.train, data.batch_size
    steps = len(train) // batch
    losses = []
    for step in range(epochs * steps):
        epoch, place = divmod(step, steps)
        index = epoch_order(data.seed, epoch, len(train))[place * batch :][:batch]
        images = data.views.one(train.images[index], index, epoch).double()
        logits = network["head"](network["projector"](network["encoder"](images)))
        likelihood = logits.softmax(1)[torch.arange(batch), train.labels[index]]
        loss = -likelihood.log().sum() / batch
        losses.append(float(loss.detach()))
        rate = 0.3 * batch / 256 * 0.5 * (1 + math.cos(math.pi * step / (epochs * steps)))
        for p, v, g in zip(weights, velocity, torch.autograd.grad(loss, weights), strict=True):
            with torch.no_grad():
                decayed = g + (1e-3 * p if p.ndim > 1 else 0)
                v.mul_(0.9).add_(decayed) if step else v.copy_(decayed)
                p.sub_(rate * (decayed + 0.9 * v))
    return dict(network.state_dict()), losses


@pytest.mark.parametrize(
    ("layers", "head_only"), [(0, False), (1, False), (2, False), (0, True), (1, True)]
)
def test_training_is_the_literal_loop(
    pretrained: dict[str, Any], layers: int, head_only: bool
) -> None:
    data = labelled()
    model = model_of(pretrained, layers=layers, head_only=head_only)
    before = copies(model.double())
    _, seen = train(model, data, precision="64-true")
    expected, losses = literal(pretrained, layers, head_only, data, 3)
    assert len(losses) == 9
    assert seen.losses == pytest.approx(losses, rel=1e-9)
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-8, atol=1e-10)
    moved = [k for k, v in expected.items() if k.endswith("weight") and not v.equal(before[k])]
    assert moved == (
        ["head.weight"] if head_only else [k for k in expected if k.endswith("weight")]
    )


@pytest.mark.parametrize("head_only", [True, False])
def test_the_head_starts_at_zero_so_that_the_first_loss_is_that_of_guessing(
    pretrained: dict[str, Any], head_only: bool
) -> None:
    model = model_of(pretrained, head_only=head_only, classes=17)
    assert not any(bool(p.any()) for p in model.head.parameters())
    _, seen = train(model, labelled(), 1)
    assert seen.losses[0] == pytest.approx(math.log(17), rel=1e-6)
    assert seen.losses[1] != pytest.approx(math.log(17), rel=1e-4)


@pytest.mark.parametrize("head_only", [True, False])
def test_head_only_leaves_every_other_bit_where_it_was(
    pretrained: dict[str, Any], head_only: bool
) -> None:
    model = model_of(pretrained, layers=1, head_only=head_only)
    before = copies(model)
    trainer, _ = train(model, labelled(), 2)  # a validation behind each epoch: no mode comes back
    moved = differing(before, dict(model.state_dict()))
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    statistics = {name for name, _ in model.named_buffers()}
    heads = {"head.weight", "head.bias"}
    assert learns == (heads if head_only else learns | heads)
    assert set(moved) == (heads if head_only else learns | statistics)
    held = {p for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {p for p in model.parameters() if p.requires_grad}
    assert model.encoder.training is not head_only


def test_the_schedule_follows_the_actual_batch_and_ends_at_zero(pretrained: dict[str, Any]) -> None:
    data = labelled(batch_size=64)
    assert data.batch_size == 43
    trainer, seen = train(model_of(pretrained), data, 4)
    peak = 0.3 * 43 / 256
    expected = [peak * 0.5 * (1 + math.cos(math.pi * step / 12)) for step in range(12)]
    assert seen.rates == pytest.approx(expected, rel=1e-6)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_another_seed_draws_other_masks_and_the_same_seed_the_same(tmp_path: Path) -> None:
    """Of layers that draw, which the encoder's constructor was asked for."""
    fit(tmp_path / "run", "--model.encoder_args", DRAWING)
    drawing, data = checkpoint(tmp_path / "run"), labelled()
    ends = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(ends))  # somebody else's draws
        model = model_of(drawing, seed=seed)
        train(model, data, 1)
        ends.append(copies(model))
    assert differing(ends[0], ends[1]) == []
    assert differing(ends[0], ends[2]) != []


# Over ranks ---------------------------------------------------------------------------------------


def on_ranks(pretrained: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Trains as one of several ranks, and evaluates."""
    model, module = model_of(pretrained), labelled(**data)
    many = {"strategy": "ddp", "devices": dist.get_world_size()}
    trainer, seen = train(model, module, 1, precision="64-true", **many)
    trainer.test(model, module, verbose=False)
    return {
        "losses": seen.losses,
        "logged": float(trainer.logged_metrics["finetune/test_top1"]),
        "accuracies": model.accuracies,
        "state": model.state_dict(),
    }


def on_one(pretrained: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    model, module = model_of(pretrained), labelled(**data)
    trainer, seen = train(model, module, 1, precision="64-true")
    trainer.test(model, module, verbose=False)
    return {"losses": seen.losses, "accuracies": model.accuracies, "state": model.state_dict()}


def half_known(path: Path) -> Path:
    """Images whose class is how bright they are; not all of val and test have a label."""
    classes = np.arange(300) % 4
    noise = np.random.default_rng(0).integers(0, 200, (300, 8, 8))
    held: dict[str, Any] = {}
    for number, split in enumerate(("train", "val", "test")):
        count = (300, 41, 53)[number]
        held[f"{split}_images"] = (noise + 15 * classes[:, None, None])[:count].astype(np.uint8)
        held[f"{split}_labels"] = classes[:count].copy()
    held["val_labels"][::3] = UNLABELLED
    held["test_labels"][::4] = UNLABELLED
    np.savez(path, **held)
    return path


@pytest.mark.ddp
def test_the_loss_is_the_mean_over_the_global_batch_and_each_known_image_counts_once(
    pretrained: dict[str, Any], tmp_path: Path
) -> None:
    """Batches of 11 over two ranks are 5 and 6 images: no rank's mean counts more."""
    data = {"dataset": "npz", "root": str(half_known(tmp_path / "some.npz")), "batch_size": 12}
    one = on_one(pretrained, data)
    two = ranks(2, on_ranks, pretrained, data)
    mean = torch.tensor([rank["losses"] for rank in two]).mean(0).tolist()
    assert mean == pytest.approx(one["losses"], rel=1e-6)
    assert len(mean) == 3
    known = 53 - 14
    for rank in two:
        assert rank["accuracies"] == one["accuracies"]
        assert rank["logged"] == pytest.approx(one["accuracies"]["top1"])
        assert (rank["accuracies"]["top1"] * known) % 1 == pytest.approx(0, abs=1e-9)
        for name, value in one["state"].items():
            torch.testing.assert_close(rank["state"][name], value, rtol=1e-9, atol=1e-12)


# Evaluation ---------------------------------------------------------------------------------------


def test_accuracies_are_those_counted_by_hand_of_clean_images_in_eval_mode(
    pretrained: dict[str, Any], tmp_path: Path
) -> None:
    data = labelled(dataset="npz", root=str(half_known(tmp_path / "some.npz")), batch_size=10)
    model = model_of(pretrained, classes=4)
    trainer, _ = train(model, data, 2)
    numbers = {
        "val": trainer.validate(model, data, verbose=False)[0],
        "test": trainer.test(model, data, verbose=False)[0],
    }
    model.eval()
    for split, logged in numbers.items():
        source = getattr(data.splits, split)
        known = source.labels != UNLABELLED
        with torch.no_grad():
            logits = model(data.views.clean(source.images[known]))
        right = float((logits.argmax(1) == source.labels[known]).double().mean())
        assert 0.2 < right <= 1
        assert logged[f"finetune/{split}_top1"] == pytest.approx(right)
        assert f"finetune/{split}_top5" not in logged  # of four classes
    assert model.accuracies == {"top1": right}  # of the last evaluation


def test_a_network_that_gives_no_numbers_is_never_right(pretrained: dict[str, Any]) -> None:
    data, model = labelled(), model_of(pretrained)
    with torch.no_grad():
        model.head.bias[3] = torch.nan
    L.Trainer(**QUIET).validate(model, data, verbose=False)
    assert model.accuracies == {"top1": 0, "top5": 0}


def test_a_split_without_labels_is_a_sentence_where_it_is_scored_and_else_left_out(
    pretrained: dict[str, Any], tmp_path: Path
) -> None:
    arrays = dict(np.load(half_known(tmp_path / "some.npz")))
    del arrays["val_labels"]
    np.savez(tmp_path / "some.npz", **arrays)
    data = labelled(dataset="npz", root=str(tmp_path / "some.npz"))
    model = model_of(pretrained)
    trainer, _ = train(model, data, 1)
    assert "finetune/val_top1" not in trainer.logged_metrics
    with pytest.raises(UserError, match="the val split has no labels, which this evaluation needs"):
        trainer.validate(model, data, verbose=False)
    assert trainer.test(model, data, verbose=False)[0]["finetune/test_top1"] > 0


def test_logits_are_of_normalised_images(pretrained: dict[str, Any]) -> None:
    data, plain = labelled(), ContrastiveDataModule("digits")
    plain.setup()
    model = model_of(pretrained, classes=3).eval()
    images = LabelledImages(data.views.clean(data.splits.val.images[:4]), torch.zeros(4)).images
    assert images.equal(plain.views.clean(plain.splits.val.images[:4]))
    assert model(images).shape == (4, 3)


# What it writes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_a_checkpoint_resumes_to_the_bit_in_every_precision(
    pretrained: dict[str, Any], tmp_path: Path, precision: str
) -> None:
    whole, half = (model_of(pretrained, layers=1, seed=4) for _ in range(2))
    train(whole, labelled(), 4, precision=precision)
    path = tmp_path / "half.ckpt"

    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(path)
                trainer.should_stop = True

    settings = {"use_distributed_sampler": False, "num_sanity_val_steps": 0}
    options = {**QUIET, **settings, "max_epochs": 4, "precision": precision}
    L.Trainer(**options, callbacks=[Stop()]).fit(half, labelled())
    saved = torch.load(path, weights_only=True)
    assert saved["global_step"] == 6
    assert saved[KEY] == {**pretrained[KEY], "seed": 4}
    resumed = model_of(pretrained, layers=1, seed=4)
    L.Trainer(**options).fit(resumed, labelled(), ckpt_path=path, weights_only=True)
    assert differing(dict(resumed.state_dict()), dict(whole.state_dict())) == []
    assert differing(saved["state_dict"], dict(whole.state_dict())) != []
    weights = backbone_of(dict(whole.state_dict()))
    double = precision == "64-true"
    assert weights["encoder.conv1.weight"].dtype == (torch.float64 if double else torch.float32)
