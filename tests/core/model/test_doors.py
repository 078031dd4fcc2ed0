"""Networks, objectives, optimisers and schedules of one's own, from Python and from files."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import yaml
from commands import QUICK, QUIET, run
from run_files import checkpoint
from torch import Tensor, nn

from simclr_pl import ContrastiveDataModule, SimCLR, UserError, load_encoder
from simclr_pl.core.model.objective import Outcome, Sizes


class Net(nn.Module):
    def __init__(self, channels: int = 1, width: int = 6) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Distance(nn.Module):
    """A loss with a weight of its own that is made when the sizes are known."""

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = power
        self.seen: list[Any] = []

    def build(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.mix = nn.Linear(sizes.features, sizes.projections)

    def forward(self, features: Tensor, projections: Tensor, batch: Any) -> Outcome:
        loss = (self.mix(features) - projections).square().mean() ** self.power
        return Outcome(loss, metrics={"distance": loss})


def cosine(features: Tensor, projections: Tensor, batch: Any) -> Tensor:
    return -F.cosine_similarity(*projections.chunk(2)).mean()


PLACE = __name__


def fitted(tmp_path: Path | None = None, epochs: int = 1, model: Any = None, **options: Any) -> Any:
    own = {"encoder": Net, "optimizer": "sgd", "warmup_epochs": 0, "seed": 0} | options
    model = SimCLR(**own) if model is None else model
    trainer = L.Trainer(**QUIET | {"max_epochs": epochs, "limit_train_batches": 2})
    trainer.fit(model, ContrastiveDataModule("digits", batch_size=64, seed=0))
    if tmp_path is not None:
        trainer.save_checkpoint(tmp_path / "own.ckpt")
    return model


def test_a_module_is_trained_as_it_is(tmp_path: Path) -> None:
    net = Net(width=3)
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    model = fitted(tmp_path, encoder=net)
    assert model.encoder is net
    assert not torch.equal(net.layers[0].weight, before["layers.0.weight"])
    loaded = load_encoder(tmp_path / "own.ckpt", encoder=Net(width=3))
    assert torch.equal(loaded.layers[0].weight, net.layers[0].weight)


def test_a_module_set_before_the_fit_is_not_replaced() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12))
    model = SimCLR(optimizer="sgd", warmup_epochs=0)
    model.encoder = net
    assert fitted(model=model).encoder is net


def test_weights_of_a_class_follow_from_the_seed() -> None:
    one, two, three = (
        fitted(encoder={"class_path": f"{PLACE}.Net", "init_args": {"width": 4}}, seed=seed)
        for seed in (3, 3, 4)
    )
    assert torch.equal(one.encoder.layers[0].weight, two.encoder.layers[0].weight)
    assert not torch.equal(one.encoder.layers[0].weight, three.encoder.layers[0].weight)


def test_no_class_that_a_file_names_is_imported(tmp_path: Path) -> None:
    fitted(tmp_path, encoder={"class_path": f"{PLACE}.Net"}, objective=f"{PLACE}.Distance")
    path = tmp_path / "own.ckpt"
    with pytest.raises(UserError, match=r"Net.* imported for its owner alone"):
        load_encoder(path)
    with pytest.raises(UserError, match=r"the checkpoint's encoder is .*hand it over"):
        SimCLR.load_from_checkpoint(path)
    with pytest.raises(UserError, match=r"the checkpoint's objective is .*hand it over"):
        SimCLR.load_from_checkpoint(path, encoder=Net)
    model = SimCLR.load_from_checkpoint(path, encoder=Net, objective=Distance)
    assert isinstance(load_encoder(path, encoder=Net), Net)
    assert torch.equal(model.objective.mix.weight, checkpoint_of(path)["objective.mix.weight"])


def test_a_class_of_a_script_is_its_owners_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever defines a network in the script that trains it has it in `__main__`."""
    monkeypatch.setattr(Net, "__module__", "__main__")
    fitted(tmp_path, encoder=Net)
    with pytest.raises(UserError, match=r"the class __main__.Net, which is imported for its owner"):
        load_encoder(tmp_path / "own.ckpt")
    assert isinstance(load_encoder(tmp_path / "own.ckpt", encoder=Net), Net)


def test_an_optimizer_in_a_file_is_wanted_when_it_is_to_train(tmp_path: Path) -> None:
    fitted(tmp_path, optimizer="torch.optim.Adam")
    model = SimCLR.load_from_checkpoint(tmp_path / "own.ckpt", encoder=Net)
    with pytest.raises(UserError, match=r"the checkpoint's optimizer is torch.optim.Adam"):
        fitted(model=model)


def checkpoint_of(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_an_objectives_weights_are_trained_and_saved(tmp_path: Path) -> None:
    model = fitted(tmp_path, objective=Distance(power=2.0), projection_dim=5)
    assert model.objective.sizes == Sizes(24, 5, 1, 8)
    assert model.objective.mix.weight in model.optimizers().optimizer.state
    assert "objective.mix.weight" in checkpoint_of(tmp_path / "own.ckpt")
    logged = model.trainer.callback_metrics
    assert float(logged["train/distance"]) == pytest.approx(float(logged["train/loss"]))
    assert "train/contrastive_top1" not in logged


@pytest.mark.parametrize("objective", [cosine, partial(cosine), f"{PLACE}.cosine"])
def test_a_function_is_an_objective(objective: Any) -> None:
    model = fitted(objective=objective)
    assert -1 <= float(model.trainer.callback_metrics["train/loss"]) <= 0


def test_the_scaled_rate_is_handed_to_an_optimizer_without_one() -> None:
    model = fitted(optimizer="torch.optim.Adam", learning_rate=0.04, weight_decay=0.5)
    optimizer = model.optimizers().optimizer
    assert isinstance(optimizer, torch.optim.Adam)
    assert [group["initial_lr"] for group in optimizer.param_groups] == [0.04 * 64 / 256] * 2
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]


def test_an_optimizers_own_rate_is_taken_as_it_stands() -> None:
    given = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.003, "weight_decay": 0.1}}
    groups = fitted(optimizer=given).optimizers().param_groups
    assert [group["initial_lr"] for group in groups] == [0.003] * 2
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_an_optimizer_that_knows_no_decay_gets_one_group() -> None:
    groups = fitted(optimizer="torch.optim.Rprop").optimizers().param_groups
    assert len(groups) == 1


@pytest.mark.parametrize(("interval", "rates"), [("epoch", 0.2**3), ("step", 0.2**6)])
def test_a_schedule_steps_once_an_epoch_or_a_step(interval: str, rates: float) -> None:
    decay = {"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.2}}
    model = fitted(
        epochs=3, schedule=decay, schedule_interval=interval, learning_rate=4.0,
    )  # fmt: skip
    assert model.optimizers().param_groups[0]["lr"] == pytest.approx(rates)


class Lightnings(SimCLR):
    """As Lightning's documentation writes it."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])]


def test_a_subclass_with_its_own_optimizers_trains_and_resumes(tmp_path: Path) -> None:
    whole = fitted(epochs=3, model=Lightnings(encoder=Net, seed=0))
    fitted(tmp_path, epochs=2, model=Lightnings(encoder=Net, seed=0))
    half = Lightnings(encoder=Net, seed=0)
    trainer = L.Trainer(**QUIET | {"max_epochs": 3, "limit_train_batches": 2})
    data = ContrastiveDataModule("digits", batch_size=64, seed=0)
    trainer.fit(half, data, ckpt_path=tmp_path / "own.ckpt", weights_only=True)
    assert half.optimizers().param_groups[0]["lr"] == pytest.approx(1e-5)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, half.state_dict()[name]), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "absent.Net"}, "there is no module 'absent'"),
        ({"encoder": "absent:Net"}, "there is no module 'absent'"),
        ({"encoder": None}, "model.encoder is None, but must be a name"),
        ({"encoder": f"{PLACE}.Nett"}, "has no 'Nett'; did you mean 'Net'?"),
        ({"encoder": {"class_path": f"{PLACE}.Net", "init_args": {"depth": 3}}}, "no argument 'de"),
        ({"encoder": nn.Conv2d(1, 4, 3)}, "does not map images [B, 1, 8, 8] to features [B, D]"),
        ({"objective": "nt_xnet"}, "did you mean 'nt_xent'?"),
        ({"objective": f"{PLACE}.Net"}, "cannot be called as objective(features, projections, b"),
        ({"objective": lambda f, p, b: p}, "128]: return the loss, a tensor of no dim"),
        ({"optimizer": "torch.nn.Linear"}, "model.optimizer"),
        ({"optimizer": "torch.optim.Adamm"}, "did you mean 'Adam"),
        ({"schedule": "torch.optim.lr_scheduler.ReduceLROnPlateau"}, "no schedule that steps by"),
        ({"schedule": "torch.optim.lr_scheduler.StepLR"}, "needs the argument step_size"),
    ],
)
def test_what_does_not_fit_is_a_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        fitted(**options)
    assert words in str(error.value)


def test_arguments_of_a_door_are_given_beside_it(tmp_path: Path) -> None:
    own = (
        "--model.encoder",
        "mlp",
        "--model.encoder.widths",
        "[16, 8]",
        "--model.encoder_args",
        "",
    )
    adam = ("--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr=0.25")
    quick = [*QUICK[: QUICK.index("--model.encoder")], *QUICK[QUICK.index("--wandb") :]]
    done = run("fit", *quick, *own[:4], *adam, "--run_dir", tmp_path / "run")
    assert done.code == 0, done
    state = checkpoint(tmp_path / "run")
    assert state["state_dict"]["encoder.layers.1.0.weight"].shape == (8, 16)
    assert state["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 0.25
    assert "0.25 (Adam, as given, not scaled)" in done.out
    again = run("fit", *quick, *own[:4], *adam[:2], "--model.optimizer.lr", "0.5",
                "--run_dir", tmp_path / "run", "--resume")  # fmt: skip
    assert "model.optimizer.init_args.lr was 0.25" in again.sentence
    linear = ("linear", "--run_dir", tmp_path / "run", "--epochs", "1", "--split", "val")
    inverted = ("--data.dataset", "examples.dataset.Inverted", "--data.dataset.limit", 500)
    scored = run(*linear, *inverted)
    assert scored.code == 0, scored
    assert "examples.dataset.Inverted's train split: 500 images" in scored.out
    assert "linear has no option --data.views.x" in run(*linear, "--data.views.x", 1).sentence


def test_arguments_of_a_door_are_among_what_is_printed() -> None:
    adam = ("--model.optimizer=torch.optim.Adam", "--model.optimizer.lr", "0.25")
    printed = run("fit", *adam, "--print_config").out
    assert yaml.safe_load(printed)["model"]["optimizer"] == {
        "class_path": "torch.optim.Adam", "init_args": {"lr": 0.25},
    }  # fmt: skip
    alone = run("fit", "--model.optimizer.lr", "0.25", "--print_config").sentence
    assert "give --model.optimizer too" in alone
