"""`mlplatform status|logs|cancel`: runs that wait, run or have ended, here and as jobs of a cluster."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

from mlplatform.cli.arguments import Arguments, suggest
from mlplatform.cli.runs import outputs, table
from mlplatform.errors import RunError

TURN = 0.3
"""Seconds between two looks at a file that is followed."""


def chosen(name: str, under: Path) -> list[Path]:
    """Return the runs a name means: of a multirun's folder all of them, else the one `mlplatform ls` knows it by."""
    from mlplatform.runs.folder import find
    from mlplatform.runs.multirun import runs_of

    return runs_of(Path(name)) or [find(name, under)]


def status(arguments: Arguments) -> None:
    """Say how a run or a multirun stands; without a name, all that wait or run."""
    from mlplatform.runs.folder import runs_in
    from mlplatform.runs.standing import OPEN, standing

    name = [*arguments.plain(most=1), None][0]
    folders = chosen(name, outputs(arguments)) if name else _readable(runs_in(outputs(arguments)))
    rows = standing(folders)
    if name is None:
        rows = [row for row in rows if row["status"] in OPEN]
    if arguments.flag("json"):
        print(json.dumps(rows, indent=2))
    elif not rows:
        print(f"no run under {outputs(arguments)}/ waits or runs")
    else:
        head = ("run", "status", "step", "job", "state", "where or why")
        print(table([head, *(tuple(_cell(row, key) for key in KEYS) for row in rows)]))
        if len(rows) > 1:
            print(", ".join(f"{number} {word}" for word, number in Counter(row["status"] for row in rows).items()))
    run = rows[-1]["run"] if rows else None
    suggest(*([f"mlplatform logs {run} -f", f"mlplatform cancel {name or run}"] if run else ["mlplatform ls"]))


KEYS = ("run", "status", "step", "job", "state", "why")


def _cell(row: dict, key: str) -> str:
    if key == "step":
        return f"{row['step']} of {row['max']}"
    return str((row["error"] if key == "why" and row["error"] else row[key]) or "")


def _readable(folders: list[Path]) -> list[Path]:
    """Leave out folders whose record is broken: `ls` says which."""
    from mlplatform.runs import record

    found = []
    for folder in folders:
        try:
            record.read(folder)
        except RunError:
            continue
        found.append(folder)
    return found


def logs(arguments: Arguments) -> None:
    """Print what a run said; with --follow, also what it says from now on, until it has ended."""
    from mlplatform.runs.folder import OUTPUT, find
    from mlplatform.runs.standing import OPEN, standing

    [name] = arguments.plain(most=1) or ["last"]
    folder = find(name, outputs(arguments))
    path = next((p for p in (folder / OUTPUT, folder / "log.txt") if p.exists()), folder / OUTPUT)
    follow, place, ended, ask = arguments.flag("follow"), 0, False, 0.0
    while True:
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                file.seek(place)
                sys.stdout.write(file.read())
                sys.stdout.flush()
                place = file.tell()
        if not follow or ended:  # once more after the end: what was said last
            break
        time.sleep(TURN)
        if time.monotonic() > ask:
            ended, ask = standing([folder])[0]["status"] not in OPEN, time.monotonic() + 10 * TURN
    now = standing([folder])[0]
    if place == 0:
        print(f"{folder}: nothing was said yet; the run is {now['status']} {now['why'] or ''}".rstrip())
    suggest(f"mlplatform status {folder}", "mlplatform ls")


def cancel(arguments: Arguments) -> None:
    """Stop a run, or all of a multirun that have not ended; what runs saves first, and nothing is queued again."""
    from mlplatform.runs.standing import OPEN, standing
    from mlplatform.runs.standing import cancel as stop

    [name] = arguments.plain(most=1, least=1)
    folders = chosen(name, outputs(arguments))
    if len(folders) > 1:
        folders = [folder for folder, row in zip(folders, standing(folders), strict=True) if row["status"] in OPEN]
    for folder, now in zip(folders, stop(folders), strict=True):
        print(f"{folder}: {now}")
    if not folders:
        print(f"{name}: all of its runs have ended")
    suggest(f"mlplatform status {name}", *[f"mlplatform resume {folder}" for folder in folders[:1]])
