"""`ls` and `compare`: what the run folders say, read without torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml

from mlplatform.errors import RunError
from mlplatform.runs import metrics, record
from mlplatform.runs.folder import runs_in

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def rows(outputs: Path) -> list[dict[str, Any]]:
    """Return a row for each run, newest last: run, status, steps, the last metrics, age in seconds."""
    found = []
    for folder in runs_in(outputs):
        try:
            known = record.read(folder)
        except RunError as error:
            found.append({"run": str(folder.relative_to(outputs)), "status": "broken", "error": str(error)})
            continue
        values = known.get("metrics") or {}
        found.append(
            {
                "run": str(folder.relative_to(outputs)),
                "status": known["status"],
                "steps": known.get("steps", 0),
                "validation/loss": values.get("validation/loss"),
                "validation/bits_per_byte": values.get("validation/bits_per_byte"),
                "age": round(time.time() - known.get("created", time.time())),
                "error": known.get("error"),
            }
        )
    return found


def compare(one: Path, two: Path) -> dict[str, Any]:
    """Return what differs between two runs: config keys, then the last value of every metric."""
    configs = [flat(_config(folder)) for folder in (one, two)]
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


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """Return a tree's leaves by dotted path."""
    if isinstance(node, dict) and node:
        return {k: v for key, value in node.items() for k, v in flat(value, f"{path}.{key}" if path else key).items()}
    return {path: node}


def _config(folder: Path) -> dict[str, Any]:
    try:
        return yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), Loader=LOADER) or {}
    except (OSError, yaml.YAMLError) as error:
        raise RunError(f"{folder / 'config.yaml'}: can't be read: {' '.join(str(error).split())}") from None
