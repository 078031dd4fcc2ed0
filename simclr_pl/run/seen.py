"""The file beside a run's checkpoints that knows its data: validation images, and a fingerprint."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np

from simclr_pl.core.data.datamodule import ContrastiveDataModule
from simclr_pl.core.errors import UserError
from simclr_pl.core.lookup import name_of
from simclr_pl.core.model.checkpoint import KEY, read_checkpoint
from simclr_pl.core.paths import expanded
from simclr_pl.images.fingerprint import Contents, changes, check_same_kind, shortened
from simclr_pl.images.heldout import OLDER, HeldOut
from simclr_pl.images.readers.npz import load_arrays
from simclr_pl.images.readers.own import is_own
from simclr_pl.run.directory import RunDirectory, is_rank_zero
from simclr_pl.run.yaml_file import read_config
from simclr_pl.writing import make_folder, whole

FORMAT = 1
"""Version of the file that `save_seen` writes; another number is refused."""

OF_THE_USER = ("folder", "manifest", "packed", "npz", "npy", "hdf5", "zarr", "shards")
"""Data sets of the table that are another set at each root."""

MARK = "held_out"
"""Key of a checkpoint: the digest of its run's validation images."""


class Seen(NamedTuple):
    """A data set, as a run has seen it.

    Attributes:
        held_out: its validation images.
        contents: its fingerprint.
    """

    held_out: HeldOut
    contents: Contents

    @classmethod
    def of(cls, data: ContrastiveDataModule) -> "Seen":
        """Looks at data that are set up; a hundred images of each split are read."""
        held_out = HeldOut.of(data.whole, data.split_seed)
        return cls(held_out, Contents.of(data.whole, held_out))


def save_seen(path: Path, seen: Seen) -> None:
    """Writes the file in one rename: 8 bytes a validation image, and a few more."""
    held_out = seen.held_out
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        "key": np.array(held_out.key),
        "seed": np.array(str(held_out.seed)),
        "hashes": held_out.hashes,
        "contents": np.array(json.dumps(seen.contents._asdict())),
    }
    make_folder(path.parent)
    with whole(path) as file:
        np.savez(file, **arrays)


def read_seen(path: Path) -> Seen:
    """Reads the file that `save_seen` has written.

    Raises:
        UserError: a broken file, or one of a newer version.
    """
    remedy = "remove it, and the validation split is drawn again"
    arrays = load_arrays(path, remedy)
    if "format" in arrays and arrays["format"].tolist() != FORMAT:
        raise UserError(
            f"{path} has format {arrays['format'].tolist()}, and this version of simclr_pl reads "
            f"{FORMAT}: install the version that wrote it"
        )
    try:
        held_out = HeldOut(
            arrays["key"].item(), int(arrays["seed"].item()), arrays["hashes"].astype(np.uint64)
        )
        return Seen(held_out, Contents(**json.loads(arrays["contents"].item())))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not say what a run has seen: {remedy}") from error


def kept_by(run: RunDirectory, checkpoint: Path) -> HeldOut | None:
    """The validation images of a run, or the rule by which it drew them.

    Args:
        run: the run of the checkpoint.
        checkpoint: the file.

    Returns:
        `None` where the run's list of images is lost: they are drawn as for a new run.

    Raises:
        UserError: broken files.
    """
    for path in (checkpoint.with_name(run.seen.name), run.seen):
        if path.is_file():
            return read_seen(path).held_out
    return None if MARK in read_checkpoint(checkpoint) else OLDER


def range_in(about: dict[str, Any]) -> dict[str, Any]:
    """The option `range` of the images that a model was trained on; none for 8-bit images.

    Args:
        about: what its checkpoint says of itself (`describe`).
    """
    return {} if about.get("range") is None else {"range": tuple(about["range"])}


def keep_statistics(data: ContrastiveDataModule, checkpoint: Path) -> None:
    """Gives data mean, std, and the numbers of an `auto` range, of the images of a model.

    Files that have come, gone or changed since do not change what a trained network sees.

    Args:
        data: not set up yet; where an option gives its statistics, they stay.
        checkpoint: the model.
    """
    about = read_checkpoint(checkpoint)[KEY]
    data.counted = tuple(about["mean"]), tuple(about["std"])
    if data.reading["range"] == "auto":
        data.reading |= range_in(about)


def sees_own_data(run: RunDirectory, dataset: Any, root: str) -> bool:
    """Whether a data set is the one that a run's config.yaml names.

    Args:
        run: the run directory.
        dataset: a name of the table of data sets, or a recipe's other ways to name one.
        root: the data set's folder, or its file.
    """
    own, default = read_config(run.config).get("data") or {}, ContrastiveDataModule()
    if dataset != (own.get("dataset") or default.given_dataset):
        return False
    if not is_own(dataset) and name_of(dataset) not in OF_THE_USER:
        return True
    if name_of(dataset) == "shards":
        return root == own.get("root")
    return expanded(root).resolve() == expanded(str(own.get("root") or default.root)).resolve()


def say_missing(data: ContrastiveDataModule) -> None:
    """Says how many validation images of a run are not in its data any more."""
    missing = 0 if data.kept is None else len(data.kept.missing(data.whole))
    if missing and is_rank_zero():
        sys.stdout.write(
            f"{missing} of the run's validation images are gone, or have other names: "
            f"{len(data.whole.val)} are left\n"
        )


class KeepSeen(L.Callback):
    """Keeps a list of a run's data; on a resume compares the data with that list.

    Args:
        run: the run directory.
        resumed: the checkpoint that the run goes on from, if it does.
    """

    def __init__(self, run: RunDirectory, resumed: Path | None) -> None:
        self.run, self.resumed = run, resumed
        self._seen: Seen | None = None
        self._written = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Looks at the data: rank 0 of a new run, all ranks of a resumed one, which may refuse."""
        data = getattr(trainer, "datamodule", None)
        if stage != "fit" or not isinstance(data, ContrastiveDataModule):
            return
        if self.resumed is None and not trainer.is_global_zero:
            return
        self._seen = Seen.of(data)
        if self.resumed is not None:
            said = self._said(self._seen, data)
            if said and trainer.is_global_zero:
                sys.stdout.write(f"{said}\n")

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Writes the file before the first checkpoint, and marks each checkpoint.

        The mark is compared where the file is lost.
        """
        if self._seen is None:
            return
        checkpoint[MARK] = self._seen.held_out.digest
        if trainer.is_global_zero and not self._written:
            save_seen(self.run.seen, self._seen)
            self._written = True

    def _said(self, seen: Seen, data: ContrastiveDataModule) -> str:
        """A sentence about changes of the data since the run was last trained; empty without any.

        Raises:
            UserError: changes that would make it another run.
        """
        assert self.resumed is not None
        if not self.run.seen.is_file():
            return self._said_without(seen, data)
        before = read_seen(self.run.seen)
        check_same_kind(before.contents, seen.contents)
        missing = before.held_out.missing(data.whole).tolist()
        if missing:
            some = before.contents.some
            names = [some[str(each)][0] for each in missing if str(each) in some]
            which = f" ({shortened(names)})" if names else ""
            raise UserError(
                f"{len(missing)} of {self.run.path}'s validation images are gone, or have other "
                f"names{which}: put them back, or start a new run in another {self.run.option}"
            )
        found = changes(before.contents, seen.contents, own=before.held_out.key == "own")
        if not found:
            return ""
        return (
            f"The data have changed since {self.run.path} was last trained: {'; '.join(found)}. "
            "The validation images stay the same, and new images are trained on"
        )

    def _said_without(self, seen: Seen, data: ContrastiveDataModule) -> str:
        """The sentence for a run without the file: it is lost, or an older version wrote none."""
        mark = read_checkpoint(str(self.resumed)).get(MARK)
        if mark not in (None, seen.held_out.digest):
            raise UserError(
                f"{self.run.seen} is missing, and the validation split that these data have now is "
                "not the run's: copy that file back, or put the images back as they were"
            )
        if mark is None and data.whole.val.names is not None and data.whole.held is not None:
            return (
                f"{self.run.path} was begun by an older version, which kept no list of validation "
                "images: they are the same as before only if no image has come or gone since then"
            )
        return ""
