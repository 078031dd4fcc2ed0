"""SimCLR in PyTorch Lightning.

Public names are imported when they are first used, so that `python -m simclr_pl --help` needs no
torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from simclr_pl.data.datamodule import ContrastiveDataModule
    from simclr_pl.data.views import SimCLRViews
    from simclr_pl.errors import UserError
    from simclr_pl.evaluate.health import HealthMonitor
    from simclr_pl.evaluate.knn import KNNMonitor
    from simclr_pl.evaluate.linear_callback import LinearEvaluation
    from simclr_pl.evaluate.probe import OnlineProbe
    from simclr_pl.model.checkpoint import load_encoder
    from simclr_pl.model.loss import NTXentLoss
    from simclr_pl.model.simclr import SimCLR

_HOMES = {
    "ContrastiveDataModule": "data.datamodule",
    "HealthMonitor": "evaluate.health",
    "KNNMonitor": "evaluate.knn",
    "LinearEvaluation": "evaluate.linear_callback",
    "NTXentLoss": "model.loss",
    "OnlineProbe": "evaluate.probe",
    "SimCLR": "model.simclr",
    "SimCLRViews": "data.views",
    "UserError": "errors",
    "load_encoder": "model.checkpoint",
}

__all__ = [
    "ContrastiveDataModule",
    "HealthMonitor",
    "KNNMonitor",
    "LinearEvaluation",
    "NTXentLoss",
    "OnlineProbe",
    "SimCLR",
    "SimCLRViews",
    "UserError",
    "__version__",
    "load_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'simclr_pl' has no attribute '{name}'")
    return getattr(importlib.import_module(f"simclr_pl.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
