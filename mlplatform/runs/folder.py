"""Run folders: created atomically, found by name, never written into once finished.

outputs/<experiment>/<date_time>/
  run.json  config.yaml  overrides.yaml  metrics.jsonl  metrics.csv  log.txt  env.txt
  checkpoints/  tokenizer/  samples/  error.txt (only on failure)
  code/  job.sh  output.txt (of a run that waited: what ran, the job, all that its processes said)
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mlplatform.errors import RunError, did_you_mean, listing

RECORD = "run.json"
LOCK = ".lock"
CANCELLED = ".cancelled"
"""Stands in the folder of a run that somebody cancelled: its job is not to go back into the queue."""
OUTPUT = "output.txt"
"""All that the processes of a run said that was not started on a terminal."""
SPARE = 1 << 18
"""Bytes kept free for saying that the disk is full."""
VARIABLE = "MLPLATFORM_RUN"
"""Environment variable with the run's folder, for ranks and jobs that were not given it as an argument."""


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


def runs_in(outputs: Path, experiment: str | None = None) -> list[Path]:
    """Return every run folder under `outputs`, or those of one experiment, oldest first by name."""
    experiments = [experiment] if experiment is not None else experiments_in(outputs)
    found = [
        (name, experiment)
        for experiment in experiments
        for name in _folders(outputs / experiment)
        if os.path.isfile(f"{outputs}/{experiment}/{name}/{RECORD}")  # noqa: PTH113  (for ten thousand runs)
    ]
    return [outputs / experiment / name for name, experiment in sorted(found)]


def experiments_in(outputs: Path) -> list[str]:
    """Return the names of the experiments' folders under `outputs`."""
    return sorted(_folders(outputs))


def _folders(parent: Path) -> list[str]:
    """Return the names of the folders in a folder; none where it is no folder."""
    try:
        with os.scandir(parent) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return []


def find(name: str | None, outputs: Path) -> Path:
    """Return a run's folder: a path, `last`, `experiment/last`, `experiment/date_time`, or the date_time alone.

    Raises:
        RunError: there is none of that name, with the nearest.
    """
    if name and (Path(name) / RECORD).is_file():
        return Path(name)
    there = runs_in(outputs)
    if not there:
        raise RunError(f"{outputs}: no runs yet; `mlplatform train` makes one")
    experiment, _, last = (name or "last").rpartition("/")
    newest = [p for p in there if last == "last" and (not experiment or p.parent == outputs / experiment)]
    if newest:
        return max(newest, key=lambda p: (p / RECORD).stat().st_mtime)
    fitting = [p for p in there if str(p.relative_to(outputs)) == name or p.name == name]
    if len(fitting) == 1:
        return fitting[0]
    names = [str(p.relative_to(outputs)) for p in there]
    if fitting:
        raise RunError(f"run '{name}': several have this name: {listing(str(p.relative_to(outputs)) for p in fitting)}")
    raise RunError(f"no run '{name}' under {outputs}{did_you_mean(str(name), names)}; `mlplatform ls` lists them")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run folder: no other process writes into it meanwhile. The system lets go of it when the holder dies.

    Raises:
        RunError: another process holds it, or it can't be written.
    """
    try:
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise RunError(f"{folder}: can't be written: {error.strerror}") from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: its children don't inherit it
        except OSError:
            raise RunError(f"{folder}: this run is still running; wait for it or stop it first") from None
        yield


def is_held(folder: Path) -> bool:
    """Whether another process is running this folder. Never asked by the process that does: its lock would be lost."""
    return is_locked(folder / LOCK)


def is_locked(file: Path) -> bool:
    """Whether another process holds a lock of the operating system on a file."""
    try:
        with file.open("r+") as opened:
            fcntl.lockf(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def cancelled(folder: Path) -> bool:
    """Whether somebody cancelled this run since it was started."""
    return (folder / CANCELLED).exists()


@contextlib.contextmanager
def spared(folder: Path) -> Iterator[None]:
    """Keep some room on the disk meanwhile, and give it back at the end: a failure can be recorded on a full disk."""
    spare = folder / ".spare"
    write_whole(spare, "0" * SPARE)
    try:
        yield
    finally:
        spare.unlink(missing_ok=True)


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
