"""`mlplatform status|logs|cancel`: runs that wait, run or have ended, here and as jobs of a cluster."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
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


def sweep_named(name: str, under: Path) -> Path | None:
    """Return the folder of a sweep by its path or name; None when it names something else."""
    from mlplatform.runs.sweeps.folder import find

    return find(name.rstrip("/") or name, under)


def status(arguments: Arguments) -> None:
    """Say how a run or a multirun stands; without a name, all that wait or run."""
    from mlplatform.runs.folder import runs_in
    from mlplatform.runs.standing import OPEN, standing

    name = [*arguments.plain(most=1), None][0]
    if name and (sweep := sweep_named(name, outputs(arguments))):
        return _sweep_status(sweep, arguments.flag("json"))
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


def _sweep_status(sweep: Path, as_json: bool) -> None:
    """Say how a sweep stands: its workers, then what came of its trials."""
    from mlplatform.runs.sweeps.folder import told
    from mlplatform.runs.sweeps.standing import is_open, standing
    from mlplatform.runs.sweeps.summary import ending
    from mlplatform.runs.sweeps.trials import read

    found = standing(sweep)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        keys = ("worker", "status", "job", "state", "why")
        rows = [tuple("" if row[key] is None else str(row[key]) for key in keys) for row in found["workers"]]
        print(table([("worker", "status", "job", "state", "where or why"), *rows]))
        print(f"{sum(found['ended'].values())} of {found['trials']} trials ended:")
        print(*ending(read(sweep), told(sweep)["metrics"]), sep="\n")
    if is_open(found):
        suggest(f"mlplatform logs {sweep} -f", f"mlplatform cancel {sweep}")
    elif sum(found["ended"].values()) < found["trials"]:
        suggest(f"mlplatform sweep --continue {sweep}")
    else:
        suggest(f"mlplatform report {sweep.name}/")


class Tail:
    """A text file from its begin, and whatever comes to it."""

    def __init__(self, path: Path, name: str = "") -> None:
        self.path, self.name, self.place = path, name, 0

    def show(self) -> None:
        """Print what is new: whole lines, each after the file's name where it has one."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace", newline="") as file:
            file.seek(self.place)
            text = file.read()
            self.place = file.tell()
        if self.name:
            text = "".join(f"{self.name} | {line}" for line in text.splitlines(keepends=True))
        sys.stdout.write(text)
        sys.stdout.flush()


def logs(arguments: Arguments) -> None:
    """Print what a run or a sweep's workers said; with --follow, also what they say from now on, until all ended."""
    from mlplatform.runs.folder import OUTPUT, find
    from mlplatform.runs.standing import OPEN, standing
    from mlplatform.runs.sweeps import standing as of_sweep

    [name] = arguments.plain(most=1) or ["last"]
    follow = arguments.flag("follow")
    if sweep := sweep_named(name, outputs(arguments)):
        _shown(lambda: of_sweep.said(sweep), follow, lambda: of_sweep.is_open(of_sweep.standing(sweep)))
        suggest(f"mlplatform status {sweep}", f"mlplatform report {sweep.name}/")
        return
    folder = find(name, outputs(arguments))
    path = next((p for p in (folder / OUTPUT, folder / "log.txt") if p.exists()), folder / OUTPUT)
    if not _shown(lambda: [path], follow, lambda: standing([folder])[0]["status"] in OPEN):
        now = standing([folder])[0]
        print(f"{folder}: nothing was said yet; the run is {now['status']} {now['why'] or ''}".rstrip())
    suggest(f"mlplatform status {folder}", "mlplatform ls")


def _shown(paths: Callable[[], list[Path]], follow: bool, goes_on: Callable[[], bool]) -> bool:
    """Print files, and follow them as long as what writes them goes on. Returns whether there was anything."""
    tails: dict[Path, Tail] = {}
    ended, ask = False, 0.0
    while True:
        there = paths()
        for path in there:
            tails.setdefault(path, Tail(path, path.stem if len(there) > 1 else "")).show()
        if not follow or ended:  # once more after the end: what was said last
            return any(tail.place for tail in tails.values())
        time.sleep(TURN)
        if time.monotonic() > ask:
            ended, ask = not goes_on(), time.monotonic() + 10 * TURN


def cancel(arguments: Arguments) -> None:
    """Stop a run, a sweep, or what of a multirun has not ended; what runs saves first, and nothing is queued again."""
    from mlplatform.runs.standing import OPEN, standing
    from mlplatform.runs.standing import cancel as stop

    [name] = arguments.plain(most=1, least=1)
    if sweep := sweep_named(name, outputs(arguments)):
        from mlplatform.runs.sweeps.standing import cancel as stop_sweep

        ways = Counter(row["status"] for row in stop_sweep(sweep)["workers"])
        print(f"{sweep}: {', '.join(f'{number} workers {word}' for word, number in ways.items())}")
        suggest(f"mlplatform sweep --continue {sweep}", f"mlplatform status {sweep}")
        return
    folders = chosen(name, outputs(arguments))
    if len(folders) > 1:
        folders = [folder for folder, row in zip(folders, standing(folders), strict=True) if row["status"] in OPEN]
    for folder, now in zip(folders, stop(folders), strict=True):
        print(f"{folder}: {now}")
    if not folders:
        print(f"{name}: all of its runs have ended")
    suggest(f"mlplatform status {name}", *[f"mlplatform resume {folder}" for folder in folders[:1]])
