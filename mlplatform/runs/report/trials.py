"""What a sweep's own folder says beside its runs: how many trials ended in which way, and why some of them did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlplatform.errors import RunError
from mlplatform.runs.sweeps.folder import FILE, told
from mlplatform.runs.sweeps.trials import read

SHOWN = 20
"""Trials of one kind that a page lists."""


def trials(folders: Sequence[Path]) -> dict[str, Any] | None:
    """Return what became of the trials of the sweep that runs are of; None when they are not all of one sweep."""
    homes = {folder.parent for folder in folders}
    if len(homes) != 1 or not ((home := homes.pop()) / FILE).is_file():
        return None
    try:
        known = told(home)
    except RunError:
        return None
    rows = read(home)
    listed = {
        status: [{**row, "runs": [Path(run).name for run in row["runs"]]} for row in rows if row["status"] == status]
        for status in ("failed", "pruned")
    }
    return {
        "total": known["trials"],
        "counts": dict(Counter(row["status"] for row in rows)),
        "metrics": known["metrics"],
        "listed": {status: found[:SHOWN] for status, found in listed.items() if found},
    }
