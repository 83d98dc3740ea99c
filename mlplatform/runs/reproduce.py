"""A recorded run, run again from its folder alone, and compared number by number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlplatform.errors import RunError
from mlplatform.registry import use_plugins
from mlplatform.runs import metrics, record
from mlplatform.runs.config_file import check_complete, read_config
from mlplatform.runs.launch import prepare, start

AFTER = "-reproduced"
"""Ends the experiment's name of a repeated run: among the runs it repeats it would count as one more seed."""
UNEQUAL = ("time", "step")


def reproduce(folder: Path, argv: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Train what a run's config.yaml says into a new folder, and compare all that both logged.

    Args:
        argv: what was typed, for the record.
        say: is told the new folder before it trains.

    Returns:
        `equal`, the steps and numbers compared, the first that differ, and what else the two records say differently.

    Raises:
        RunError: the run logged nothing to compare with, or ended otherwise than finished this time.
    """
    config, before = read_config(folder), record.read(folder)
    check_complete(folder, config)
    if not (logged := metrics.read(folder)):
        raise RunError(f"{folder}: it logged no metrics, so there is nothing to compare with")
    use_plugins(config.get("plugins") or [])
    experiment = str(config.get("experiment", "default")).removesuffix(AFTER) + AFTER
    changed = {"experiment": experiment, "outputs": str(folder.resolve().parent.parent), "logger": None}
    again, ready = prepare({**config, **changed}, overrides=[], argv=argv)
    record.update(again, reproduces=before.get("id", str(folder)))
    say(f"again  {again}")
    if (status := start(again, ready)) != "finished":
        raise RunError(f"{again}: {status} before its end, so it is not compared; mlplatform resume {again}")
    return {"run": str(folder), "again": str(again), **compared(logged, metrics.read(again)), **_records(before, again)}


def compared(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> dict[str, Any]:
    """Return whether two runs logged the same, up to where the shorter ends; how fast they were is left out."""
    first, second = _by_step(one), _by_step(two)
    last = min(max(first), max(second, default=-1))
    steps = sorted(step for step in {*first, *second} if step <= last)
    pairs = [
        (step, name, first.get(step, {}).get(name), second.get(step, {}).get(name))
        for step in steps
        for name in sorted({*first.get(step, {}), *second.get(step, {})})
    ]
    unequal = [dict(zip(("step", "metric", "was", "is"), pair, strict=True)) for pair in pairs if pair[2] != pair[3]]
    equal = bool(pairs) and not unequal
    return {"equal": equal, "steps": len(steps), "numbers": len(pairs), "unequal": len(unequal), "first": unequal[:1]}


def _by_step(rows: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        kept = {name: value for name, value in row.items() if name not in UNEQUAL and not name.startswith("perf/")}
        found.setdefault(row["step"], {}).update(kept)
    return found


def _records(before: Mapping[str, Any], again: Path) -> dict[str, Any]:
    """Return what the two records say differently of code, data, versions and hardware, [was, is] by name."""
    two = [_causes(before), _causes(record.read(again))]
    names = sorted({*two[0], *two[1]})
    return {"differs": {n: [t.get(n) for t in two] for n in names if two[0].get(n) != two[1].get(n)}}


def _causes(known: Mapping[str, Any]) -> dict[str, Any]:
    git = known.get("git") or {}
    return {
        "code: commit": git.get("commit"),
        "code: uncommitted changes": git.get("dirty"),
        "code: hash of the package": known.get("source"),
        "data: fingerprint": (known.get("data") or {}).get("fingerprint"),
        "hardware": ", ".join(known.get("hardware") or []),
        "hardware: devices": known.get("devices"),
        **{f"version: {name}": version for name, version in (known.get("versions") or {}).items()},
    }
