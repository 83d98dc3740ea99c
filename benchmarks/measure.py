"""Paired measurement: two ways of doing one thing, alternately in one process, reported as medians of ratios."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil


def paired(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float, float]:
    """Return (median of theirs/ours, median seconds of ours, of theirs) over `rounds` alternating calls.

    What runs on one thread may be timed by `time.process_time`, which other work on the machine disturbs less.
    """
    ratios, own, other = [], [], []
    for number in range(rounds):
        first, second = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        times = {}
        for call in (first, second):
            start = clock()
            call()
            times[call] = clock() - start
        own.append(times[ours])
        other.append(times[theirs])
        ratios.append(times[theirs] / times[ours])
    return statistics.median(ratios), statistics.median(own), statistics.median(other)


class PeakMemory:
    """Samples this process's resident size every millisecond; `above` is the peak above the start, in bytes."""

    def __enter__(self) -> PeakMemory:
        self.process = psutil.Process()
        self.start = self.peak = self.process.memory_info().rss
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.is_set():
            self.peak = max(self.peak, self.process.memory_info().rss)
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    @property
    def above(self) -> int:
        return self.peak - self.start


def script() -> str:
    """Return the command that made the figures, for the table's caption."""
    return f"python {Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}".strip()
