"""Being asked to stop: the first SIGTERM or SIGINT ends the run after its step, a second SIGINT at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from mlplatform.errors import RunError


class StopSignals:
    """Catches SIGTERM and SIGINT while it is entered; `caught` is the first one's name."""

    def __init__(self) -> None:
        self.caught: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self._before = {s: signal.signal(s, self._catch) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.caught == "SIGINT":
            raise RunError(
                "interrupted a second time: stopped at once, without saving; resume from the last checkpoint"
            )
        self.caught = self.caught or signal.Signals(number).name
