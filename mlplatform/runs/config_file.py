"""config.yaml: the resolved config of a run, with its secrets masked.

What was masked is kept outside the run folder, so that a folder can be given away: under the cache, in a file only
this user can read. A run that goes on elsewhere is told the values again: `mlplatform resume RUN data.path=...`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from mlplatform.errors import RunError, listing
from mlplatform.places import cache
from mlplatform.runs.folder import write_whole
from mlplatform.runs.secrets import MASK, Scrubber, masked

CONFIG = "config.yaml"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def write_config(folder: Path, config: dict[str, Any], from_environment: Iterable[str] = ()) -> Scrubber:
    """Write a run's config.yaml; return what takes its secrets out of other texts.

    Args:
        from_environment: dotted paths of values that came from the environment.
    """
    shown, hidden = masked(config, from_environment)
    private = private_file(folder)
    if hidden:
        private.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(private, json.dumps(hidden), mode=0o600)
    else:
        private.unlink(missing_ok=True)
    write_whole(folder / CONFIG, yaml.safe_dump(shown, sort_keys=False, allow_unicode=True))
    return Scrubber(hidden.values())


def read_shown(folder: Path) -> dict[str, Any]:
    """Return a run's config as config.yaml has it: what may be shown. Raises RunError when there is none."""
    path = folder / CONFIG
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"{path}: can't be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise RunError(f"{path}: holds no config")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """Return a run's config with the masked values in place, where this user's cache has them.

    Raises:
        RunError: there is no config.
    """
    config = read_shown(folder)
    for path, value in secrets_of(folder).items():
        put(config, path, value)
    return config


def secrets_of(folder: Path) -> dict[str, Any]:
    """Return what was masked in a run's config by its dotted path; empty on another machine."""
    try:
        return json.loads(private_file(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def check_complete(folder: Path, config: dict[str, Any]) -> None:
    """Raise RunError when a masked value is missing on this machine, and say how to give it."""
    if missing := masked_paths(config):
        told = f"{folder / CONFIG}: {listing(missing)} was masked and its value is not on this machine"
        raise RunError(f"{told}; give it again: mlplatform resume {folder} {missing[0]}=...")


def masked_paths(config: dict[str, Any]) -> list[str]:
    """Return the dotted paths that hold `***`."""
    return [path for path, value in leaves(config).items() if value == MASK]


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Return a tree's leaves by dotted path; the items of a list by their number."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = {k: v for key, value in items for k, v in leaves(value, f"{path}.{key}" if path else str(key)).items()}
    return found or {path: node}


def put(config: Any, path: str, value: Any) -> None:
    """Set the value at a dotted path. Raises RunError when the config has no such place."""
    *parents, last = (int(part) if part.isdecimal() else part for part in path.split("."))
    try:
        for part in parents:
            config = config[part]
        config[last] = value
    except (KeyError, IndexError, TypeError):
        raise RunError(f"{path}: the run's config has no such key") from None


def private_file(folder: Path) -> Path:
    """Return where the masked values of a run folder are kept."""
    return cache() / "private" / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]}.json"
