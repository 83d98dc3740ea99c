"""How many devices of a machine a run has."""

from __future__ import annotations

from typing import Any

from mlplatform.registry import Spec


def counted(trainer: Spec, strategy: str, launcher: Any) -> Spec:
    """Return a trainer's section with a number in the place of `devices: auto`, which is of where the run will run."""
    if trainer["devices"] != "auto":
        return trainer
    devices = 1 if strategy == "single" else launcher.devices(trainer["accelerator"])
    return Spec({**trainer.data, "devices": devices}, trainer.path, trainer.group)
