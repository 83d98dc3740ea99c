"""Where metrics go beside metrics.jsonl. A tracker's trouble never stops a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from mlplatform.registry import Spec, block
from mlplatform.runs.trackers.tracker import Foreign, Tracker
from mlplatform.training.trainable import Recorder

log = logging.getLogger(__name__)


@block("logger/several")
def several(*, loggers: list[Annotated[Spec, "logger"]]) -> list[Tracker]:
    """Several trackers at once."""
    return [tracker for logger in loggers for tracker in trackers(logger)]


def trackers(logger: Spec | None) -> list[Tracker]:
    """Return what a run's `logger` names. Raises SpecError when a package is not installed."""
    built = logger.build() if logger else []
    each = built if isinstance(built, list) else [built]
    return [one if hasattr(one, "start") else Foreign(one) for one in each]


class Recorders:
    """Sends metrics to the run's own file first, then to every tracker that still works."""

    def __init__(self, own: Recorder, trackers: list[Tracker], say: Callable[[str], None]) -> None:
        self.own, self.trackers, self.say = own, list(trackers), say

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Start every tracker."""
        self._each(lambda tracker: tracker.start(folder, config))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Keep the metrics of a step."""
        self.own.log(step, values)
        self._each(lambda tracker: tracker.log(step, values))

    def finish(self, status: str, error: str | None = None) -> None:
        """End every tracker; the error is that of a run that failed."""
        self._each(lambda tracker: tracker.finish(status, error))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in list(self.trackers):
            try:
                act(tracker)
            except Exception as error:  # whatever a tracker raises, the run goes on and its own record is whole
                self.trackers.remove(tracker)
                told = " ".join(str(error).split())[:200]
                self.say(f"{type(tracker).__name__}: {told}; training goes on, metrics.jsonl has everything")
                log.debug("tracker failed", exc_info=True)
