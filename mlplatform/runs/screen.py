"""What a run says: on the terminal, and with the time before each line in its log.txt."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlplatform.errors import RunError
from mlplatform.runs import record
from mlplatform.training.progress import Display, Events, Lines


class Screen:
    """A display whose lines are kept in a file too.

    Args:
        scrub: takes secrets out of what the file gets.
    """

    def __init__(self, shown: Display, path: Path, scrub: Callable[[str], str]) -> None:
        self.shown = shown
        self.kept = Lines(_Stamped(path, scrub))  # type: ignore[arg-type]

    def step(self, step: int, done: float, values: dict[str, float]) -> None:
        """Show a step; the file gets one every few seconds."""
        self.shown.step(step, done, values)
        self.kept.step(step, done, values)

    def say(self, line: str) -> None:
        """Show a line and keep it."""
        self.shown.say(line)
        self.kept.say(line)

    def close(self) -> None:
        """End the live display; lines may still follow."""
        self.shown.close()

    @contextlib.contextmanager
    def warnings(self) -> Iterator[None]:
        """Show the library's warnings meanwhile."""
        handler = _Say(self)
        logger = logging.getLogger("mlplatform")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)


class Told:
    """A tracker that prints what other programs read: JSON lines of a run's start, its metrics and its end."""

    def __init__(self, events: Events) -> None:
        self.events = events

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Tell where the run is and what it is."""
        known = record.read(folder)
        facts = {name: known.get(name) for name in ("id", "parameters", "devices", "seed")}
        self.folder = folder
        self.events.tell("start", run=str(folder), **facts)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Tell the metrics of a step; what is not finite is null, as in metrics.jsonl."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.events.tell("metrics", step=step, **finite)

    def finish(self, status: str, error: str | None) -> None:
        """Tell how the run ended."""
        known = record.read(self.folder)
        told = {name: known.get(name) for name in ("steps", "seconds", "best")}
        self.events.tell("end", run=str(self.folder), status=status, error=error, **told)


def told(screen: Screen) -> list[Told]:
    """Return what tells metrics as JSON lines, where the screen does."""
    return [Told(screen.shown)] if isinstance(screen.shown, Events) else []


class _Stamped:
    """A text file that puts the time before each line, and is told lines only."""

    def __init__(self, path: Path, scrub: Callable[[str], str]) -> None:
        self.path, self.scrub = path, scrub

    def write(self, text: str) -> None:
        if not text.strip():
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {self.scrub(text)}\n")
        except OSError as error:
            raise RunError(f"{self.path}: can't be written: {error.strerror}") from None

    def flush(self) -> None:
        """Every line is written at once."""


class _Say(logging.Handler):
    """Sends warnings of the library to the run's screen."""

    def __init__(self, screen: Any) -> None:
        super().__init__(logging.WARNING)
        self.screen = screen

    def emit(self, entry: logging.LogRecord) -> None:
        self.screen.say(entry.getMessage())
