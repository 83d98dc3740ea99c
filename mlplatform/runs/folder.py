"""Run folders: created atomically, found by name, never written into once finished.

outputs/<experiment>/<date_time>/
  run.json  config.yaml  overrides.yaml  metrics.jsonl  metrics.csv  log.txt  env.txt
  checkpoints/  tokenizer/  samples/  error.txt (only on failure)
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from mlplatform.errors import RunError, did_you_mean, listing

RECORD = "run.json"


def create(outputs: Path, experiment: str, now: float | None = None) -> Path:
    """Make and return a new folder `outputs/experiment/2026-11-23_181206`.

    Two runs that start in one second get two folders: `mkdir` succeeds for one of them, the other takes `-2`.

    Raises:
        RunError: the folder can't be made.
    """
    stamp = time.strftime("%Y-%m-%d_%H%M%S", time.localtime(now))
    parent = outputs / experiment
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            folder = parent / (stamp if number == 1 else f"{stamp}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise RunError(f"{parent}: can't make a run folder: {error.strerror}; set outputs= to another place") from None
    raise RunError(f"{parent}: ten thousand runs started in this second")


def runs_in(outputs: Path) -> list[Path]:
    """Return every run folder under `outputs`, oldest first by name."""
    return sorted((record.parent for record in outputs.glob(f"*/*/{RECORD}")), key=lambda p: (p.name, str(p)))


def find(name: str | None, outputs: Path) -> Path:
    """Return a run's folder: a path, `last`, `experiment/date_time`, or the date_time alone.

    Raises:
        RunError: there is none of that name, with the nearest.
    """
    if name and (Path(name) / RECORD).is_file():
        return Path(name)
    there = runs_in(outputs)
    if not there:
        raise RunError(f"{outputs}: no runs yet; `mlplatform train` makes one")
    if name in (None, "last"):
        return max(there, key=lambda p: (p / RECORD).stat().st_mtime)
    fitting = [p for p in there if str(p.relative_to(outputs)) == name or p.name == name]
    if len(fitting) == 1:
        return fitting[0]
    names = [str(p.relative_to(outputs)) for p in there]
    if fitting:
        raise RunError(f"run '{name}': several have this name: {listing(str(p.relative_to(outputs)) for p in fitting)}")
    raise RunError(f"no run '{name}' under {outputs}{did_you_mean(str(name), names)}; `mlplatform ls` lists them")


def write_whole(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a text file that is there whole or as it was before.

    Raises:
        RunError: the disk is full or refuses.
    """
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(mode)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{path}: can't be written: {error.strerror}; what was there is as it was") from None
