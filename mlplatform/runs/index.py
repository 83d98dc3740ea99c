"""`ls` and `compare`: what the run folders say, read without torch."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlplatform.errors import RunError, did_you_mean, listing
from mlplatform.runs import metrics, record
from mlplatform.runs.alike import Alike
from mlplatform.runs.config_file import CONFIG, leaves, read_shown
from mlplatform.runs.folder import RECORD, experiments_in, is_held, runs_in
from mlplatform.runs.kept import Kept

STATUSES = (
    "queued", "starting", "running", "finished", "failed", "preempted", "pruned", "cancelled", "killed", "broken",
)  # fmt: skip
INNER = ("host", "created", "metrics", "seed")
"""What a kept row has beside what is shown."""


def rows(
    outputs: Path, experiment: str | None = None, status: str | None = None, sort: str | None = None
) -> list[dict[str, Any]]:
    """Return a row for each run, newest last: run, status, steps, last and best validation loss, age in seconds.

    Args:
        experiment: only its runs.
        status: only runs of this status.
        sort: a metric, whose smallest value comes first, or with `-` before it the largest; each row has it then, and
            runs without it are left out.

    Raises:
        RunError: there is no such experiment, status or metric.
    """
    if experiment is not None:
        check_experiment(outputs, experiment)
    if status is not None and status not in STATUSES:
        raise RunError(f"--status {status}: there are {listing(STATUSES)}{did_you_mean(status, STATUSES)}")
    found = [row for row in known(outputs, runs_in(outputs, experiment)) if status in (None, row["status"])]
    if sort is None:
        return [_shown(row) for row in found]
    name = metric_named(sort.removeprefix("-"), found)
    having = [row for row in found if row["metrics"].get(name) is not None]
    having.sort(key=lambda row: row["metrics"][name], reverse=sort.startswith("-"))
    return [{**_shown(row), "metric": name.removeprefix("validation/"), "best": row["metrics"][name]} for row in having]


def check_experiment(outputs: Path, experiment: str) -> None:
    """Raise RunError when an experiment has no folder under outputs, with the nearest."""
    there = experiments_in(outputs)
    if experiment not in there:
        near = did_you_mean(experiment, there)
        raise RunError(f"{outputs}/{experiment}: no such experiment{near}; there are {listing(there) or 'none yet'}")


def known(outputs: Path, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return what is known of run folders in their order, with every metric's last value."""
    named = {name_of(folder): folder for folder in folders}
    files = {run: (f"{folder}/{RECORD}", f"{folder}/{metrics.FILE}") for run, folder in named.items()}
    found = Kept(outputs).read("row", files, lambda run: {"run": run, **_row(named[run])})
    for run, row in found.items():
        if row["status"] == "running" and row["host"] == socket.gethostname() and not is_held(named[run]):
            row["status"] = "killed"  # the record says running and no process of this machine is
    return list(found.values())


def configs(outputs: Path, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the leaves of the runs' configs by dotted path, in their order; none of a run that has no config."""
    named, alike = {name_of(folder): folder for folder in folders}, Alike()

    def read(run: str) -> dict[str, Any]:
        try:
            return alike.leaves((named[run] / CONFIG).read_text(encoding="utf-8"))
        except (RunError, OSError, ValueError):
            return {}

    files = {run: (f"{folder}/{CONFIG}",) for run, folder in named.items()}
    return list(Kept(outputs).read("config", files, read).values())


def name_of(folder: Path) -> str:
    """Return `experiment/date_time` of a run folder."""
    return f"{folder.parent.name}/{folder.name}"


def _row(folder: Path) -> dict[str, Any]:
    try:
        known = record.read(folder)
    except RunError as error:
        return {"status": "broken", "error": str(error), "metrics": {}}
    steps, values = known.get("steps", 0), known.get("metrics") or {}
    if known["status"] != "finished":  # the record is written at the end of a session, the metrics all along
        logged = metrics.read(folder)
        steps, values = max([steps, *(row["step"] for row in logged)]), metrics.last_values(logged)
    return {
        "status": known["status"],
        "steps": steps,
        "validation/loss": values.get("validation/loss"),
        "validation/bits_per_byte": values.get("validation/bits_per_byte"),
        **_best(known),
        "error": known.get("error"),
        "host": known.get("host"),
        "created": known.get("created"),
        "seed": known.get("seed"),
        "metrics": values,
    }


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as `ls` has it, with the run's age."""
    shown = {name: value for name, value in row.items() if name not in INNER}
    if row["status"] == "broken":
        return shown
    return {**shown, "age": round(time.time() - (row["created"] or time.time()))}


def _best(known: dict[str, Any]) -> dict[str, Any]:
    """Return the metric that chooses, and its value at its best."""
    found = [(name, value) for name, value in (known.get("best") or {}).items() if name != "step"]
    name, value = (found or [(None, None)])[0]
    return {"metric": name and name.removeprefix("validation/"), "best": value}


def metric_named(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """Return a metric's whole name: as it was logged, or by its last part where that says which; validation first.

    Args:
        rows: of `known`.

    Raises:
        RunError: no run has such a metric, or several metrics end so.
    """
    names = sorted({metric for row in rows for metric in row["metrics"]})
    fitting = [metric for metric in names if metric == name] or [m for m in names if m.rpartition("/")[2] == name]
    fitting = [metric for metric in fitting if metric.startswith("validation/")] or fitting
    if len(fitting) != 1:
        why = f"it may be {listing(fitting)}" if fitting else f"there are {listing(names) or 'none yet'}"
        raise RunError(f"metric '{name}': no run has it{did_you_mean(name, names)}; {why}")
    return fitting[0]


def compare(one: Path, two: Path) -> dict[str, Any]:
    """Return what differs between two runs: config keys, then the last value of every metric."""
    configs = [leaves(read_shown(folder)) for folder in (one, two)]
    values = [metrics.last_values(metrics.read(folder)) for folder in (one, two)]
    records = [record.read(folder) for folder in (one, two)]
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
        "config": differences(configs),
        "metrics": {name: [v.get(name) for v in values] for name in names},
    }


def differences(configs: Sequence[dict[str, Any]], missing: Any = "-") -> dict[str, list[Any]]:
    """Return the keys that configs (their leaves) don't all have alike, each with its value in every one."""
    keys = sorted({key for config in configs for key in config})
    found = {key: [config.get(key, missing) for config in configs] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}
