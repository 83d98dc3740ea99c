"""What was read of run folders, kept in `outputs/.index.sqlite` so that ten thousand runs are listed at once.

The folders are the truth and this file is a memory of them: each entry goes with the times, size and inode of the files
it was read from, and is read again when one of them is another. It may be deleted at any time, and several processes
may use it; where it can't be used, everything is read from the folders.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

FILE, SCHEMA = ".index.sqlite", 1
TABLE = "CREATE TABLE kept (what TEXT, run TEXT, key TEXT, value TEXT, PRIMARY KEY (what, run)) WITHOUT ROWID"
SECONDS_TO_SETTLE = 2.0
"""A file changed less than this before it was read may change again without its times telling: it is not kept."""
SECONDS_TO_WAIT = 2.0
"""For another process that writes."""

T = TypeVar("T")
Files = Sequence[str | Path]


class Kept:
    """Values read of run folders, by what they are and the run's name."""

    def __init__(self, outputs: Path) -> None:
        self.path = outputs / FILE

    def read(self, what: str, files: Mapping[str, Files], make: Callable[[str], Any]) -> dict[str, Any]:
        """Return a value for each run, as kept or made anew.

        Args:
            what: names the kind of value, and with it what `make` does.
            files: by the run's name, the files its value is read from.
            make: reads the value of a run, one that JSON can hold.
        """
        keys = {run: key_of(paths) for run, paths in files.items()}
        known = self._known(what, keys)
        values: dict[str, Any] = {}
        fresh: list[tuple[str, str, str, str]] = []
        for run, (key, changed) in keys.items():
            if run in known:
                values[run] = known[run]
                continue
            began = time.time()
            values[run] = make(run)
            if began - changed > SECONDS_TO_SETTLE:
                fresh.append((what, run, key, json.dumps(values[run], default=str)))
        if fresh:
            self._keep(fresh)
        return values

    def _known(self, what: str, keys: Mapping[str, tuple[str, float]]) -> dict[str, Any]:
        one = list(keys) if len(keys) == 1 else None  # one of thousands
        query = f"SELECT run, key, value FROM kept WHERE what = ?{' AND run = ?' if one else ''}"

        def known(base: sqlite3.Connection) -> dict[str, Any]:
            rows = base.execute(query, (what, *(one or ())))
            texts = {run: value for run, key, value in rows if run in keys and keys[run][0] == key}
            return dict(zip(texts, json.loads(f"[{','.join(texts.values())}]"), strict=True))

        return (self._use(known) if self.path.is_file() else None) or {}

    def _keep(self, rows: list[tuple[str, str, str, str]]) -> None:
        self._use(lambda base: base.executemany("INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?)", rows))

    def _use(self, act: Callable[[sqlite3.Connection], T]) -> T | None:
        """Do something with the file, made new where it is of another version or damaged; None where that fails."""
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=SECONDS_TO_WAIT)) as base, base:
                if base.execute("PRAGMA user_version").fetchone()[0] != SCHEMA:
                    base.execute("BEGIN IMMEDIATE")  # another process may be doing the same
                    base.execute("DROP TABLE IF EXISTS kept")
                    base.execute(TABLE)
                    base.execute(f"PRAGMA user_version = {SCHEMA}")
                return act(base)
        except (
            sqlite3.OperationalError,
            OSError,
        ):  # locked, or not to be written: it is not at fault
            return None
        except (sqlite3.DatabaseError, ValueError):
            self.path.unlink(missing_ok=True)
            return None


def key_of(paths: Files) -> tuple[str, float]:
    """Return (what tells these files from any others or later ones, when the last of them changed)."""
    parts, changed = [], 0.0
    for path in paths:
        try:
            found = os.stat(path)  # noqa: PTH116  (ten thousand times: a Path costs more than the call)
        except OSError:
            parts.append("-")
            continue
        parts.append(f"{found.st_mtime_ns:x}.{found.st_ctime_ns:x}.{found.st_size:x}.{found.st_ino:x}")
        changed = max(changed, found.st_ctime, found.st_mtime)
    return " ".join(parts), changed
