"""What a tracker is, and one of Lightning's as a tracker."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Protocol

from mlplatform.errors import SpecError


class Tracker(Protocol):
    """One place metrics go to."""

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Begin, or go on with, the run of a folder, whose metrics.jsonl ends where the run goes on.

        The config has its secrets masked.
        """
        ...

    def log(self, step: int, values: dict[str, float]) -> None:
        """Keep the metrics of a step."""
        ...

    def finish(self, status: str, error: str | None) -> None:
        """Say how the run ended, and why where it failed."""
        ...


class Foreign:
    """A logger of Lightning's, named by `_target_`, as a tracker."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Give it the config."""
        self.logger.log_hyperparams(config)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Give it the metrics of a step."""
        self.logger.log_metrics(values, step)

    def finish(self, status: str, error: str | None) -> None:
        """Have it write what it still holds."""
        self.logger.save()
        self.logger.finalize("failed" if status == "failed" else "success")


def need(module: str, extra: str) -> None:
    """Raise SpecError with the command that installs a package, where it is not installed."""
    if importlib.util.find_spec(module) is None:
        raise SpecError(f'this logger needs the "{extra}" extra:  pip install "mlplatform[{extra}]"') from None
