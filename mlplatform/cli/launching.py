"""`mlplatform train --multirun`: Hydra's grammar of values makes a grid, and each of its points a run."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from mlplatform.cli.arguments import Arguments, suggest
from mlplatform.cli.axes import MOST, split
from mlplatform.cli.compose import Composed, compose
from mlplatform.cli.library import Library
from mlplatform.errors import SpecError
from mlplatform.runs.sweeps.space import Interval
from mlplatform.runs.sweeps.space import grid as points_of


def grid(tokens: Iterable[str], config_dirs: Iterable[str] = ()) -> tuple[list[list[str]], list[list[str]]]:
    """Return (the overrides of every run, those of them that differ between the runs); the last key varies fastest.

    Raises:
        SpecError: bad syntax, an interval, too many runs, or nothing that varies.
    """
    fixed, space = split(tokens, Library(config_dirs))
    if not space:
        raise SpecError("--multirun: nothing varies; give several values, such as optimizer.lr=1e-3,3e-3 seed=range(3)")
    if between := [key for key, axis in space.items() if isinstance(axis, Interval)]:
        told = (
            "--multirun takes lists of values: a,b, range(...), choice(...) or glob(...); mlplatform sweep takes both"
        )
        raise SpecError(f"{between[0]} is an interval: {told}")
    if (size := math.prod(len(axis.ends()) for axis in space.values())) > MOST:
        raise SpecError(f"--multirun: {size:,} runs are over {MOST:,}; take fewer values")
    points = [[f"{key}={value}" for key, value in point.items()] for point in points_of(space)]
    return [[*fixed, *point] for point in points], points


def multirun(arguments: Arguments) -> int:
    """Prepare a run for each point of a grid, then run them here or submit them. Returns 1 when one failed."""
    from mlplatform.cli.train import dry_run

    folders = arguments.options.get("config-dir", [])
    runs, varied = grid(arguments.overrides(), folders)
    results = [_checked(words, own, folders) for words, own in zip(runs, varied, strict=True)]
    if arguments.flag("dry-run"):
        print(dry_run(results[0], arguments, array=len(runs)))
        print(f"{len(runs)} runs; above is the first:", *(f"  {shlex.join(words)}" for words in varied), sep="\n")
        suggest(arguments.again("train --multirun"))
        return 0
    return _run(arguments, results, varied)


def _checked(words: list[str], own: list[str], config_dirs: list[str]) -> Composed:
    try:
        return compose("train", words, config_dirs).check()
    except SpecError as error:
        raise SpecError(problems=[(path, f"{told} (run {shlex.join(own)})") for path, told in error.problems]) from None


def _run(arguments: Arguments, results: list[Composed], varied: list[list[str]]) -> int:
    from mlplatform.cli.train import prepared
    from mlplatform.runs import multirun as several
    from mlplatform.runs.config_file import read_config
    from mlplatform.runs.submit import launcher_of

    points = [
        several.Point(own, lambda result=result: prepared(result, arguments)[0])
        for result, own in zip(results, varied, strict=True)
    ]
    made = several.prepare_all(points)
    home = several.begin(made, ["mlplatform", *sys.argv[1:]])
    if not launcher_of(read_config(made[0])).here:
        job = several.queue(home, made)
        print(f"job array {job} of {len(made)} runs is in the queue: {home}")
        suggest(f"mlplatform status {home}", f"mlplatform logs {made[0]} -f", f"mlplatform cancel {home}")
        return 0
    several.run_here(made, print)
    print(results_table(made))
    suggest(f"mlplatform status {home}", "mlplatform compare RUN RUN", "mlplatform ls")
    return 0 if all(_status(folder) == "finished" for folder in made) else 1


def _status(folder: Path) -> str:
    from mlplatform.runs import record

    return record.read(folder)["status"]


def results_table(folders: list[Path]) -> str:
    """Return what came of runs: what is each one's own, its status, its steps and its validation loss."""
    from mlplatform.cli.runs import table
    from mlplatform.runs import record

    rows = [("run", "varied", "status", "steps", "validation loss", "best")]
    for folder in folders:
        known = record.read(folder)
        loss = (known.get("metrics") or {}).get("validation/loss")
        chosen = [(name, value) for name, value in (known.get("best") or {}).items() if name != "step"]
        best = [f"{name.partition('/')[2]} {value:.4f}" for name, value in chosen]
        numbers = (str(known["steps"]), "" if loss is None else f"{loss:.4f}", "".join(best))
        rows.append((str(folder), shlex.join(known["varied"]), known["status"], *numbers))
    return table(rows)
