"""SimCLR in PyTorch Lightning.

Public names are imported when they are first used, so that `python -m simclr_pl --help` needs no
torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from simclr_pl.core.data.datamodule import ContrastiveDataModule
    from simclr_pl.core.errors import UserError
    from simclr_pl.core.model.checkpoint import load_encoder
    from simclr_pl.core.model.ntxent import NTXentLoss
    from simclr_pl.core.model.simclr import SimCLR
    from simclr_pl.core.views.simclr import SimCLRViews
    from simclr_pl.monitors.health import HealthMonitor
    from simclr_pl.monitors.knn import KNNMonitor
    from simclr_pl.monitors.linear import LinearEvaluation
    from simclr_pl.monitors.probe import OnlineProbe

_HOMES = {
    "ContrastiveDataModule": "core.data.datamodule",
    "HealthMonitor": "monitors.health",
    "KNNMonitor": "monitors.knn",
    "LinearEvaluation": "monitors.linear",
    "NTXentLoss": "core.model.ntxent",
    "OnlineProbe": "monitors.probe",
    "SimCLR": "core.model.simclr",
    "SimCLRViews": "core.views.simclr",
    "UserError": "core.errors",
    "load_encoder": "core.model.checkpoint",
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
