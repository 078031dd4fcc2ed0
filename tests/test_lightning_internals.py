"""Private names of Lightning and torch: which of them the installed versions still have."""

import ast
import inspect
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from monitored import Other, digits, trainer
from torch.utils.data import DataLoader

import simclr_pl
from simclr_pl import lightning_internals

PACKAGE = Path(simclr_pl.__file__).parent

OURS = {
    "_replace", "_asdict", "_make", "_fields",  # named tuples: public in spite of their names
    "_exit",  # of `os`, likewise
    "_foreach_add", "_foreach_mul", "_foreach_mul_", "_foreach_add_", "_foreach_sub_",
    "_foreach_norm",  # torch's kernels for many tensors, as its own optimisers use them
    "_actions", "_action_groups", "_group_actions", "_option_string_actions",  # argparse's
    "_to_model",  # W&B's workspaces
}  # fmt: skip
"""Names with an underscore that are no business of the one file."""

LOOPS = {
    "fit_loop", "epoch_loop", "val_loop", "launcher", "procs", "batch_progress", "epoch_progress",
    "restarting", "restarted_on_last", "reset_on_run", "setup_data",
}  # fmt: skip
"""Public names of Lightning's that no page of its documentation has."""


class Look(L.Callback):
    """Looks for names on a trainer in the midst of a fit, and in a validation of it."""

    NAMES = (
        "_accelerator_connector._layer_sync",
        "_signal_connector.register_signal_handlers",
        "_logger_connector.should_update_logs",
        "_logger_connector.metrics",
        "strategy.launcher",
        "fit_loop._can_stop_early",
        "fit_loop._data_fetcher",
        "fit_loop.setup_data",
        "fit_loop.total_batch_idx",
        "fit_loop.batch_idx",
        "fit_loop.epoch_progress.total.processed",
        "fit_loop.epoch_progress.current.processed",
        "fit_loop.epoch_loop._broadcast_sigterm_tensor",
        "fit_loop.epoch_loop._num_ready_batches_reached",
        "fit_loop.epoch_loop._should_check_val_fx",
        "fit_loop.epoch_loop._batches_that_stepped",
        "fit_loop.epoch_loop.restarting",
        "fit_loop.epoch_loop.restarted_on_last",
        "fit_loop.epoch_loop.val_loop.run",
        "fit_loop.epoch_loop.val_loop.batch_progress.reset_on_run",
        "fit_loop.epoch_loop.val_loop.batch_progress.total.ready",
        "fit_loop.epoch_loop.val_loop.batch_progress.total.started",
        "fit_loop.epoch_loop.val_loop.batch_progress.total.processed",
        "fit_loop.epoch_loop.val_loop.batch_progress.total.completed",
        "fit_loop.epoch_loop.val_loop.batch_progress.current.completed",
    )

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self.looked = 0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.looked += 1
        self.gone |= {name for name in self.NAMES if not _has(trainer, name)}

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.on_train_batch_end(trainer)


def _has(thing: Any, names: str) -> bool:
    for name in names.split("."):
        if not hasattr(thing, name):
            return False
        thing = getattr(thing, name)
    return True


def test_lightning_still_has_every_private_name_that_is_used() -> None:
    look = Look()
    trainer(look, max_steps=1, limit_val_batches=1, val_check_interval=1).fit(Other(), digits())
    assert look.looked >= 2
    assert not look.gone, f"Lightning {L.__version__} has taken away: {sorted(look.gone)}"


def test_lightning_still_has_every_private_class_and_method_that_is_used() -> None:
    from lightning.pytorch.strategies import launchers
    from lightning.pytorch.utilities import model_helpers

    launcher = launchers._MultiProcessingLauncher
    assert "self._start_method =" in inspect.getsource(launcher.__init__)
    assert "self.procs" in inspect.getsource(_SubprocessScriptLauncher.__init__)
    assert hasattr(model_helpers, "_restricted_classmethod")
    assert hasattr(LightningCLI, "_parser")
    assert hasattr(ModelCheckpoint, "_save_topk_checkpoint")


@pytest.mark.processes
def test_torch_still_has_every_private_name_of_a_loader_that_is_used() -> None:
    loader = DataLoader(list(range(4)), num_workers=1, persistent_workers=True)  # type: ignore[arg-type]
    assert lightning_internals.running_iterator(loader) is None
    iterator: Any = iter(loader)
    try:
        assert lightning_internals.running_iterator(loader) is iterator
        assert lightning_internals.is_worker_iterator(iterator)
        names = (
            *("_workers", "_get_data", "_try_get_data", "_pin_memory", "_worker_pids_set"),
            *("_shutdown", "_shutdown_workers", "_task_info", "_prefetch_factor", "_num_workers"),
            "_try_put_index",
        )
        assert not [name for name in names if not hasattr(iterator, name)]
        source = inspect.getsource(type(iterator))
        assert "_pin_memory_thread" in source
        assert "self._get_data()" in source  # replaced on the object
        assert lightning_internals.heeds_worker_deaths(iterator)
        lightning_internals.ignore_worker_deaths(iterator)
        assert not lightning_internals.has_lost_pinning(iterator)
        (worker,) = lightning_internals.worker_processes(iterator)
    finally:
        lightning_internals.end_iterator(iterator)
    assert lightning_internals.has_ended(iterator)
    assert not worker.is_alive()


FILES = [f for f in sorted(PACKAGE.rglob("*.py")) if f.stem != "lightning_internals"]


def _private(tree: ast.AST) -> set[str]:
    """Attributes with an underscore that no `self` of the file has, and imported names with one."""
    found = set()
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    own = OURS | {node.attr for node in attributes if ast.unparse(node.value) in ("self", "cls")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            hidden = node.attr.startswith("_") and not node.attr.startswith("__")
            if node.attr in LOOPS or (hidden and node.attr not in own):
                found.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found |= {n for n in names if n.startswith("_") and not n.startswith("__")}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_private_names_stand_in_one_file(file: Path) -> None:
    assert not _private(ast.parse(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["_trainer", "_parser", "_iterator"])
def test_private_names_of_what_is_inherited_stand_in_one_file(name: str) -> None:
    """On `self` they look like our own."""
    assert not [file for file in FILES if f"self.{name}" in _without_own(file, name)]


def _without_own(file: Path, name: str) -> str:
    text = file.read_text(encoding="utf-8")
    return "" if f"def {name}(" in text else text


def test_the_look_for_private_names_finds_them() -> None:
    code = "from a import _b\nc._d\nself._e\nf.fit_loop.x\ng._replace()"
    assert _private(ast.parse(code)) == {"_b", "c._d", "f.fit_loop"}
