"""metrics.jsonl: one line per logged step, only ever appended to, cut back to a checkpoint on resume."""

from __future__ import annotations

import csv
import io
import json
import math
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
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


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
