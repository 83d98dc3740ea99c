"""What a run shows while it trains: a live bar on a terminal, plain lines off one."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0
VARIABLE = "MLPLATFORM_DISPLAY"


class Display(Protocol):
    """Shows progress. `done` is the share of the run that is done."""

    def step(self, step: int, done: float, values: dict[str, float]) -> None: ...
    def say(self, line: str) -> None: ...
    def close(self) -> None: ...


def display(stream: TextIO | None = None) -> Display:
    """Return a live bar when the stream (standard output) is a terminal, else plain lines.

    MLPLATFORM_DISPLAY asks for another: `quiet` for nothing, `json` for lines that are JSON.
    """
    out: TextIO = stream if stream is not None else sys.stdout
    if (form := os.environ.get(VARIABLE)) in ("quiet", "json"):
        return Quiet() if form == "quiet" else Events(out)
    return Bar(Console(file=out)) if out.isatty() else Lines(out)


class Quiet:
    """Shows nothing: what ranks other than 0 use."""

    def step(self, step: int, done: float, values: dict[str, float]) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Nothing to end."""


class Events:
    """A JSON object a line for what is said; the metrics are told by a tracker (see runs.screen), so steps are not."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def step(self, step: int, done: float, values: dict[str, float]) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Show a line as an event."""
        self.tell("message", text=line)

    def tell(self, event: str, **fields: object) -> None:
        """Print an event with its fields."""
        print(json.dumps({"event": event, "time": round(time.time(), 3), **fields}), file=self.stream, flush=True)

    def close(self) -> None:
        """Nothing to end."""


class Lines:
    """A line every few seconds, and at the first and last step: `step=120 loss=2.31 lr=0.0003 tok/s=8123 eta=1m20s`."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self.stream, self.now = stream, now
        self.pace = Pace(now)
        self.last: float | None = None

    def step(self, step: int, done: float, values: dict[str, float]) -> None:
        """Show a step, if it is time."""
        eta = self.pace.eta(done)
        if self.last is None or done >= 1 or self.now() - self.last >= SECONDS_BETWEEN_LINES:
            self.last = self.now()
            self.say(f"step={step} {summary(values)} eta={duration(eta)}")

    def say(self, line: str) -> None:
        """Show a line."""
        print(line, file=self.stream, flush=True)

    def close(self) -> None:
        """Nothing to end."""


class Bar:
    """A live bar with the same figures; other lines scroll by above it."""

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        self.pace = Pace(now)
        columns = (BarColumn(bar_width=30), TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.description}"))
        self.progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=False)
        self.task: TaskID | None = None

    def step(self, step: int, done: float, values: dict[str, float]) -> None:
        """Move the bar."""
        text = f"step={step} {summary(values)} eta={duration(self.pace.eta(done))}"
        if self.task is None:
            self.task = self.progress.add_task(text, total=1.0)
            self.progress.start()
        self.progress.update(self.task, completed=done, description=text)

    def say(self, line: str) -> None:
        """Show a line above the bar."""
        self.progress.console.print(Text(line))

    def close(self) -> None:
        """Leave the bar as it is and free the terminal."""
        self.progress.stop()


class Pace:
    """Estimates the time left from the progress since the first call of this session."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.first: tuple[float, float] | None = None

    def eta(self, done: float) -> float | None:
        """Return the seconds left, None before there is something to judge by."""
        if self.first is None:
            self.first = (self.now(), done)
            return None
        gained = done - self.first[1]
        return (self.now() - self.first[0]) / gained * (1 - done) if gained > 0 else None


def summary(values: dict[str, float]) -> str:
    """Return `loss=2.31 lr=0.0003 tok/s=8123` of a step's metrics; what is not known yet is left out."""
    parts = (("loss", "train/loss", ".4f"), ("lr", "train/lr", ".3g"), ("tok/s", "perf/tokens_per_second", ".0f"))
    return " ".join(f"{short}={values[name]:{form}}" for short, name, form in parts if name in values)


def duration(seconds: float | None) -> str:
    """Return `45s`, `12m05s`, `3h20m` or `2d04h`; `?` when unknown."""
    if seconds is None:
        return "?"
    total = round(seconds)
    for size, unit, small, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if total >= size:
            return f"{total // size}{unit}{total % size // small:02d}{name}"
    return f"{total}s"
