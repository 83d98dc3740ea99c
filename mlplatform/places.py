"""Where the shipped conf, recipes and texts lie, in a checkout and in an installed wheel. Imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def share() -> Path:
    """Return the folder that holds `conf/` and `recipes/`: the checkout's top, or `mlplatform/share` in a wheel."""
    installed = PACKAGE / "share"
    return installed if installed.is_dir() else PACKAGE.parent


def conf() -> Path:
    """Return the folder of the shipped config groups."""
    return share() / "conf"


def recipes() -> Path:
    """Return the folder of the shipped recipes."""
    return share() / "recipes"


def cache() -> Path:
    """Return the cache folder: `$MLPLATFORM_CACHE`, else `$XDG_CACHE_HOME/mlplatform`, else `~/.cache/mlplatform`."""
    if own := os.environ.get("MLPLATFORM_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "mlplatform"
