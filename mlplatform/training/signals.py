"""Being asked to stop: the first signal ends the run after its step, a second SIGINT at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from mlplatform.errors import RunError

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What asks a run to save and stop: the system, a scheduler before it preempts, a scheduler before time is up."""
early: list[int] = []
"""Signals that came before anything could be done about them."""


def remember() -> None:
    """Keep the signals that come from now on in `early`: they would kill this process before it can handle them."""
    for number in STOPPING:
        signal.signal(number, lambda caught, _: early.append(caught))


class StopSignals:
    """Catches SIGINT and those of `STOPPING` while it is entered; `caught` is the first one's name."""

    def __init__(self) -> None:
        self.caught: str | None = signal.Signals(early[0]).name if early else None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self._before = {s: signal.signal(s, self._catch) for s in (*STOPPING, signal.SIGINT)}
            # what started this process may have kept them from itself, and a mask is inherited
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._before)
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
