"""Going on with a run that stopped, in its own folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mlplatform.errors import RunError
from mlplatform.registry import validate
from mlplatform.runs import record
from mlplatform.runs.export import read_config
from mlplatform.runs.launch import start, write_config

CHANGEABLE = (
    "trainer.max",
    "trainer.keep",
    "trainer.keep_best",
    "trainer.log_every",
    "trainer.validate_every",
    "trainer.checkpoint_every",
    "trainer.devices",
    "batch.workers",
    "batch.timeout",
    "strategy.kind",
)
"""Keys that don't change what the run computes up to its old end."""


def resume(folder: Path, changes: dict[str, Any]) -> record.Status:
    """Go on with a run from its newest whole checkpoint.

    Args:
        changes: dotted keys of the config to change; only those of `CHANGEABLE`.

    Raises:
        RunError: the run is finished or still running, or a change would make it another run.
    """
    known = record.read(folder)
    if refused := [key for key in changes if key not in CHANGEABLE]:
        raise RunError(
            f"{refused[0]}: a resumed run may change {', '.join(CHANGEABLE)} only; start a new run with "
            f"init_from={folder} for anything else"
        )
    if known["status"] == "finished" and "trainer.max" not in changes:
        raise RunError(f"{folder}: this run is finished; a longer one: mlplatform resume {folder} trainer.max=...")
    if known["status"] == "running" and _alive(known):
        raise RunError(f"{folder}: this run is still running (process {known['pid']})")
    if changes:
        config = read_config(folder)
        before = read_config(folder)
        for key, value in changes.items():
            node = config
            *parts, last = key.split(".")
            for part in parts:
                node = node[part]
            node[last] = value
        validate(config, "run")
        if config != before:
            write_config(folder, config, known.get("from_environment") or ())
            record.update(folder, changes=[*known.get("changes", []), changes])
    return start(folder)


def _alive(known: dict[str, Any]) -> bool:
    import socket

    if known.get("host") != socket.gethostname() or not known.get("pid") or known["pid"] == os.getpid():
        return False
    try:
        os.kill(known["pid"], 0)
    except (OSError, ValueError):
        return False
    command = Path(f"/proc/{known['pid']}/cmdline")
    return not command.is_file() or b"mlplatform" in command.read_bytes()
