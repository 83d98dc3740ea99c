"""Runs on this machine."""

from __future__ import annotations

from mlplatform.registry import Positive, block
from mlplatform.training.strategies import Accelerator, Place


@block("launcher/local")
class Local:
    """On this machine, at once: in this process, or one process for each of trainer.devices.

    Args:
        at_once: how many runs of a `--multirun` run at the same time, each with its share of the cores as threads.
    """

    here = True

    def __init__(self, *, at_once: Positive = 1) -> None:
        self.at_once = at_once

    def devices(self, accelerator: Accelerator) -> int:
        """Return how many devices a run takes that is told no number."""
        return Place.count(accelerator)

    def place(self, accelerator: Accelerator, devices: int) -> Place:
        """Return where a run stands. Raises SpecError when this machine has no such devices."""
        return Place.find(accelerator, devices)
