"""Waiting for data, but not for ever: a source that stalls is named, and where it stands."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mlplatform.data.ahead import READER
from mlplatform.errors import DataError

GRACE = 30.0


class Watchdog:
    """While it is entered, a wait for a batch that takes too long is a DataError in the thread that waits.

    A signal interrupts what Python waits for. Where a library waits in a way that no signal reaches, the process ends
    `GRACE` seconds later with the same line.

    Args:
        source: the name of the data. seconds: the longest wait.
    """

    def __init__(self, source: str, seconds: float) -> None:
        self.source, self.seconds = source, seconds
        self.since: float | None = None
        self.told = ""
        self._over = threading.Event()
        self._before: Any = None

    def __enter__(self) -> Watchdog:
        if threading.current_thread() is threading.main_thread():  # only there may a signal be handled
            self._before = signal.signal(signal.SIGALRM, self._stop)
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._before is not None:
            signal.signal(signal.SIGALRM, self._before)

    def each(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield every batch; waiting for one is watched, what is done with it is not."""
        iterator = iter(batches)
        while True:
            self.since = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self.since = None
            yield batch

    def _watch(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while not self._over.wait(min(1.0, self.seconds / 4)):
            since = self.since
            waited = time.monotonic() - since if since is not None else 0.0
            if waited > self.seconds and not self.told:
                where = traceback.extract_stack(sys._current_frames()[_reader() or main])[-1]
                place = f"{Path(where.filename).name}:{where.lineno}, {where.name}"
                limit = f"{self.seconds:g} s (batch.timeout)"
                self.told = f"{self.source}: no batch came for {limit}; it is waiting in {place}"
                signal.pthread_kill(main, signal.SIGALRM)
            elif waited > self.seconds + GRACE:
                print(f"error: {self.told}", file=sys.stderr, flush=True)
                os._exit(DataError.exit_code)

    def _stop(self, *_: object) -> None:
        if self.since is not None:  # else the batch came in this moment
            raise DataError(self.told)
        self.told = ""


def _reader() -> int | None:
    """Return the thread that makes batches ahead of the one that waits for them, where there is one."""
    return next((thread.ident for thread in threading.enumerate() if thread.name == READER), None)
