"""metrics.jsonl: one line per logged step, only ever appended to, cut back to a checkpoint on resume."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from mlplatform.errors import RunError
from mlplatform.runs.folder import write_whole

FILE, TABLE = "metrics.jsonl", "metrics.csv"


class Metrics:
    """Appends to a run's metrics.jsonl. A `Recorder` of the training floor."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append one line: the step, the time, the values. Raises RunError when the disk is full."""
        row = {"step": step, "time": round(time.time(), 3), **{k: _number(v) for k, v in values.items()}}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunError(f"{self.path}: can't be written: {error.strerror}") from None


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics. A last line cut short by a crash is left out."""
    path = folder / FILE
    return parsed(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else []


def since(folder: Path, mark: str = "", most: int = -1) -> tuple[list[dict[str, Any]], str, bool]:
    """Return (the lines after a mark, the mark after them, whether they begin anew).

    They do where the file was written again since, as `cut` does on resume, or the mark is none.

    Args:
        most: bytes read at once; the rest comes next time, as does a line that is still being written.
    """
    inode, _, place = mark.partition(".")
    try:
        with (folder / FILE).open("rb") as file:
            found = os.fstat(file.fileno())
            offset = int(place) if place.isdecimal() and inode == str(found.st_ino) else 0
            offset = offset if offset <= found.st_size else 0
            file.seek(offset)
            whole, end, _ = file.read(most).rpartition(b"\n")
    except OSError:
        return [], "", True
    rows = parsed(whole.decode(errors="replace"))
    return rows, f"{found.st_ino}.{offset + len(whole) + len(end)}", not offset


def parsed(text: str) -> list[dict[str, Any]]:
    """Return the whole lines of a text of metrics."""
    lines = text.splitlines()
    try:
        rows = json.loads(f"[{','.join(lines)}]")  # at once, three times as fast as line by line
    except ValueError:
        rows = [row for line in lines if (row := _row(line)) is not None]
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def _row(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def cut(folder: Path, step: int) -> None:
    """Take out what was logged after a step, and a line cut short: a resumed run logs those steps again."""
    kept = [row for row in read(folder) if row["step"] <= step]
    if (folder / FILE).is_file():
        write_whole(folder / FILE, "".join(json.dumps(row) + "\n" for row in kept))


def last_values(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return each metric's last value."""
    found: dict[str, float] = {}
    for row in rows:
        found |= {k: v for k, v in row.items() if k not in ("step", "time") and v is not None}
    return found


def write_table(folder: Path) -> None:
    """Write metrics.csv: the same as metrics.jsonl, a column for each metric."""
    rows = read(folder)
    columns = ["step", "time", *sorted({name for row in rows for name in row} - {"step", "time"})]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_whole(folder / TABLE, text.getvalue())


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
