"""trials.jsonl: a line for each trial of a sweep that ended, for whoever shows a sweep without opening its study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "trials.jsonl"


def add(sweep: Path, **row: Any) -> None:
    """Write down what became of a trial: its number, values, status, metrics, seeds, runs, reason and seconds."""
    with (sweep / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read(sweep: Path) -> list[dict[str, Any]]:
    """Return the trials that ended, as they ended; a line cut short by a crash is left out."""
    rows = []
    for line in (sweep / FILE).read_text(encoding="utf-8").splitlines() if (sweep / FILE).is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows
