"""`ls` and `compare`: what the run folders say, read without torch."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

from mlplatform.errors import RunError
from mlplatform.runs import metrics, record
from mlplatform.runs.config_file import leaves, read_shown
from mlplatform.runs.folder import is_held, runs_in


def rows(outputs: Path) -> list[dict[str, Any]]:
    """Return a row for each run, newest last: run, status, steps, last and best validation loss, age in seconds."""
    found = []
    for folder in runs_in(outputs):
        try:
            known = record.read(folder)
        except RunError as error:
            found.append({"run": str(folder.relative_to(outputs)), "status": "broken", "error": str(error)})
            continue
        found.append({"run": str(folder.relative_to(outputs)), **_row(folder, known)})
    return found


def _row(folder: Path, known: dict[str, Any]) -> dict[str, Any]:
    steps, values = known.get("steps", 0), known.get("metrics") or {}
    if known["status"] != "finished":  # the record is written at the end of a session, the metrics all along
        logged = metrics.read(folder)
        steps, values = max([steps, *(row["step"] for row in logged)]), metrics.last_values(logged)
    return {
        "status": _status(folder, known),
        "steps": steps,
        "validation/loss": values.get("validation/loss"),
        "validation/bits_per_byte": values.get("validation/bits_per_byte"),
        **_best(known),
        "age": round(time.time() - known.get("created", time.time())),
        "error": known.get("error"),
    }


def _best(known: dict[str, Any]) -> dict[str, Any]:
    """Return the metric that chooses, and its value at its best."""
    found = [(name, value) for name, value in (known.get("best") or {}).items() if name != "step"]
    name, value = (found or [(None, None)])[0]
    return {"metric": name and name.removeprefix("validation/"), "best": value}


def _status(folder: Path, known: dict[str, Any]) -> str:
    """Return the record's status, or `killed` when it says running and no process of this machine is."""
    dead = known["status"] == "running" and known.get("host") == socket.gethostname() and not is_held(folder)
    return "killed" if dead else known["status"]


def compare(one: Path, two: Path) -> dict[str, Any]:
    """Return what differs between two runs: config keys, then the last value of every metric."""
    configs = [leaves(read_shown(folder)) for folder in (one, two)]
    values = [metrics.last_values(metrics.read(folder)) for folder in (one, two)]
    records = [record.read(folder) for folder in (one, two)]
    config = {k: [c.get(k, "-") for c in configs] for k in sorted({*configs[0], *configs[1]})}
    names = sorted({*values[0], *values[1]})
    about = ("status", "steps", "seed", "host")
    facts = {name: [r.get(name) for r in records] for name in about}
    facts["commit"] = [(r.get("git") or {}).get("commit") for r in records]
    facts["data"] = [(r.get("data") or {}).get("fingerprint") for r in records]
    facts |= {
        f"version of {n}": [r.get("versions", {}).get(n) for r in records] for n in records[0].get("versions", {})
    }
    return {
        "runs": [str(one), str(two)],
        "record": {k: v for k, v in facts.items() if v[0] != v[1]},
        "config": {k: v for k, v in config.items() if v[0] != v[1]},
        "metrics": {name: [v.get(name) for v in values] for name in names},
    }
