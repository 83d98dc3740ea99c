"""Who works on a sweep: each worker holds a lock in its folder, which ends with its process, and says who it is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mlplatform.errors import RunError
from mlplatform.runs.folder import is_locked

PREFIX, SUFFIX = ".worker-", ".lock"


@dataclass(frozen=True)
class Worker:
    """A worker, by its number; `job` is its job's, on a cluster."""

    number: int
    host: str
    pid: int
    job: str | None = None
    alive: bool = False


@contextlib.contextmanager
def working(folder: Path, number: int, job: str | None = None) -> Iterator[None]:
    """Say that a worker of a sweep lives. Raises RunError when another process is that worker."""
    with _file(folder, number).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{folder}: this sweep is running; wait for it or stop it first") from None
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "job": job}))
        file.flush()
        yield


def is_working(folder: Path, number: int) -> bool:
    """Whether a worker of a sweep lives. Never asked by that worker of itself: its lock would be lost."""
    return is_locked(_file(folder, number))


def workers(folder: Path) -> list[Worker]:
    """Return who works on a sweep or did, by their numbers."""
    found = []
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        number = int(path.name[len(PREFIX) : -len(SUFFIX)])
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # it begins just now
            continue
        found.append(Worker(number, **said, alive=is_working(folder, number)))
    return sorted(found, key=lambda worker: worker.number)


def written(worker: Worker) -> dict[str, object]:
    """Return a worker as JSON has it."""
    return asdict(worker)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{PREFIX}{number}{SUFFIX}"
