"""Which mode and project of Weights & Biases holds, and whether anybody is logged in."""

import configparser
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from simclr_pl.passwords import password_for

Mode = Literal["auto", "online", "offline", "off"]

PROJECT = "simclr_pl"
"""W&B's project where neither recipe nor settings name one."""


def logged_in() -> bool:
    """Whether credentials are at hand, in the environment or in the user's netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return password_for(urlparse(address).hostname or "") is not None


MODES: dict[str, Mode] = {
    "online": "online", "run": "online", "shared": "online",
    "offline": "offline", "dryrun": "offline",
    "disabled": "off", "off": "off",
}  # fmt: skip
"""Words for WANDB_MODE, those of W&B and ours."""


def resolve_mode(asked: Mode) -> Mode:
    """`online`, `offline` or `off`: what was asked for, else what is set, else whether logged in.

    Set are WANDB_DISABLED, WANDB_MODE, or the mode that `wandb offline` and `wandb disabled` write
    to W&B's settings. A word that nobody knows is offline: nothing is uploaded by mistake.
    """
    if asked != "auto":
        return asked
    if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
        return "off"
    if named := setting("mode"):
        return MODES.get(named.lower(), "offline")
    return "online" if logged_in() else "offline"


def setting(name: str) -> str:
    """One of W&B's settings: its environment variable, else its files; empty if not set.

    Args:
        name: as in `mode`, whose variable is WANDB_MODE.
    """
    if value := os.environ.get(f"WANDB_{name.upper()}", "").strip():
        return value
    home = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    here = Path(os.environ.get("WANDB_DIR") or ".")
    file = configparser.ConfigParser(interpolation=None)
    for folder in (home, here / ".wandb", here / "wandb"):  # what comes later wins
        with suppress(configparser.Error, OSError, UnicodeDecodeError):
            file.read(folder / "settings", encoding="utf-8")
    return file.get("default", name, fallback="").strip()


def default_project() -> str:
    """W&B's project where a recipe names none: WANDB_PROJECT, W&B's settings, else ours."""
    return setting("project") or PROJECT
