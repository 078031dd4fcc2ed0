"""The checkpoint that a command evaluates, its run, and data as the encoder was trained on."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from simclr_pl.commandline.call import data_of
from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import Door, name_of
from simclr_pl.core.model.checkpoint import KEY, read_checkpoint
from simclr_pl.core.paths import expanded
from simclr_pl.images.heldout import HeldOut
from simclr_pl.images.views.extended import MoreViews
from simclr_pl.run.config import own_encoder
from simclr_pl.run.directory import RunDirectory, run_of
from simclr_pl.run.seen import kept_by, range_in, say_missing, sees_own_data
from simclr_pl.run.yaml_file import read_config
from simclr_pl.writing import as_folder


@dataclass(frozen=True)
class DataChoice:
    """Another data set than the run's own (transfer).

    Args:
        dataset: digits, fashion_mnist, cifar10, cifar100, stl10, folder, or npz; or a class path of
            your own.
        root: folder of the data; for `npz` the file.
    """

    dataset: Door | None = None
    root: str | None = None


class Pretrained(NamedTuple):
    """A checkpoint, and where it comes from.

    Attributes:
        checkpoint: the file.
        content: what is in it.
        run: whose it is; `None` for a file that lies alone.
        configs: files that give the data, later ones winning.
        chosen: another data set.
    """

    checkpoint: Path
    content: dict[str, Any]
    run: RunDirectory | None
    configs: list[Path]
    chosen: DataChoice

    @property
    def about(self) -> dict[str, Any]:
        """The checkpoint's own entries: architecture, image size and statistics, seed."""
        about: dict[str, Any] = self.content[KEY]
        return about

    @property
    def seed(self) -> int:
        """The seed of pretraining."""
        return int(self.about["seed"])

    @property
    def own_encoder(self) -> Door | None:
        """The class of the encoder, where it is one of the run's owner's."""
        return own_encoder([*([self.run.config] if self.run else []), *self.configs])

    @property
    def epoch(self) -> int | None:
        """Epochs trained when the checkpoint was written; `None` for an exported file."""
        epoch = self.content.get("epoch")
        return None if epoch is None else int(epoch) + 1

    @property
    def dataset(self) -> str:
        """The name of the data set to evaluate on."""
        return name_of(self._of_data("dataset"))

    def _of_data(self, key: Literal["dataset", "root"]) -> Any:
        chosen = getattr(self.chosen, key)
        named = [chosen, *(_of_data(file, key) for file in reversed(self.configs))]
        return next(filter(None, named), getattr(ContrastiveDataModule(), key))

    @property
    def on_own_data(self) -> bool:
        """Whether the data set is the one that the run was trained on."""
        root = self._of_data("root")
        return self.run is not None and sees_own_data(self.run, self._of_data("dataset"), root)

    @property
    def held_out(self) -> HeldOut | None:
        """The validation images that the run has kept, where it is evaluated on its own data."""
        if self.run is None or not self.on_own_data:
            return None
        return kept_by(self.run, self.checkpoint)

    def folder(self, name: str) -> Path:
        """The run's folder of that name, or a subfolder of it for another data set."""
        if self.run is None:
            return self.checkpoint.parent / name
        if self.on_own_data:
            return self.run.path / name
        same_kind = self._of_data("dataset") == _of_data(self.run.config, "dataset")
        other = Path(self._of_data("root")).stem if same_kind else as_folder(self.dataset)
        return self.run.path / name / other

    def data(self) -> ContrastiveDataModule:
        """The data, with size and statistics of the images that the encoder was trained on.

        Raises:
            UserError: whatever is wrong with the data; images with other channels.
        """
        # Colours are left alone: the protocols know clean images, and crops with flips.
        overrides: dict[str, Any] = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
        if self.chosen.dataset is not None:
            overrides |= {"dataset": self.chosen.dataset, "mean": None, "std": None}
        if self.chosen.root is not None:
            overrides |= {"root": self.chosen.root}
        overrides |= {"image_size": self.about["image_size"], **range_in(self.about)}
        kept = self.held_out
        data = data_of(self.configs, overrides, kept)
        channels = self.about["encoder"]["channels"]
        if data.channels != channels:
            raise UserError(
                f"{data.dataset} has images of {data.channels} channel{'s'[: data.channels != 1]}, "
                f"but the encoder was trained on {channels}: use data like the encoder's, or an "
                "encoder trained on such images"
            )
        trained = {name: tuple(self.about[name]) for name in ("mean", "std")}
        if any(getattr(data, name) != value for name, value in trained.items()):
            data = data_of(self.configs, overrides | trained, kept)
        say_missing(data)
        data.left_out = None if self.run is None else self.run.left_out
        if isinstance(data.views, MoreViews):
            data.views.solarise = 0.0
        return data


def find_pretrained(
    checkpoint: str | None, run_dir: str | None, config: list[str] | None, chosen: DataChoice
) -> Pretrained:
    """Reads a checkpoint, and finds its run and the configuration files of its data.

    Args:
        checkpoint: a training checkpoint or an exported encoder.
        run_dir: a run, instead: its last checkpoint.
        config: files that give the data, later ones winning (default: the run's own).
        chosen: another data set.

    Raises:
        UserError: not one of checkpoint and run directory; no such file; a broken one; nothing
            that says what the data is.
    """
    if (checkpoint is None) == (run_dir is None):
        raise UserError("give --checkpoint FILE or --run_dir RUN, one of them")
    path = expanded(checkpoint) if checkpoint else RunDirectory(str(run_dir)).last_checkpoint
    content = read_checkpoint(path)
    run = run_of(path)
    own = [run.config] if run else []
    configs = [expanded(file) for file in config] if config else own
    if not configs and chosen.dataset is None:
        raise UserError(
            f"there is no config.yaml with {path} that says what data to evaluate on: "
            "give --config FILE, or --data.dataset NAME"
        )
    return Pretrained(path, content, run, configs, chosen)


def check_seeds(seeds: list[int] | None) -> None:
    """`--seeds` without a number behind it, or with one twice.

    Raises:
        UserError: an empty list; a seed that would count twice in mean and spread.
    """
    if seeds is not None and not seeds:
        raise UserError("seeds is empty: give one or more, as in --seeds 0 1 2, or leave it out")
    twice = [seed for seed, count in Counter(seeds).items() if count > 1]
    if twice:
        raise UserError(f"seeds has {twice[0]} twice: give each number once")


def _of_data(config: Path, key: str) -> Any:
    value = (read_config(config).get("data") or {}).get(key)
    return value if value is None or isinstance(value, dict) else str(value)
