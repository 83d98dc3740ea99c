"""`mlplatform train --multirun`: Hydra's grammar of values makes a grid, and each of its points a run."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from mlplatform.cli.arguments import Arguments, suggest
from mlplatform.cli.compose import Composed, compose
from mlplatform.cli.hydra_errors import syntax_error
from mlplatform.cli.library import Library
from mlplatform.errors import SpecError, listing

MOST = 10_000


class _Options:
    """What Hydra asks for the names that `glob(*)` matches."""

    def __init__(self, library: Library) -> None:
        self.library = library

    def get_group_options(self, group_name: str, results_filter: Any = None, **_: Any) -> list[str]:
        return self.library.options(group_name)


def grid(tokens: Iterable[str], config_dirs: Iterable[str] = ()) -> tuple[list[list[str]], list[list[str]]]:
    """Return (the overrides of every run, those of them that differ between the runs).

    `a,b`, `range(1,4)`, `choice(a,b)` and `glob(*)` are Hydra's, and so is the order: the last key varies fastest.

    Raises:
        SpecError: bad syntax, a sweep that is no list of values, or nothing that varies.
    """
    library = Library(config_dirs)
    parser = OverridesParser.create(config_loader=_Options(library))  # type: ignore[arg-type]
    fixed, swept = [], []
    for token in tokens:
        try:
            [override] = parser.parse_overrides([token])
        except HydraException as error:
            raise syntax_error(token, error) from None
        if not override.is_sweep_override():
            fixed.append(token)
            continue
        if not override.is_discrete_sweep():
            raise SpecError(f"{token}: --multirun takes lists of values: a,b, range(...), choice(...) or glob(...)")
        if _count(override) == 0:
            raise SpecError(f"{token}: matches nothing; there are {listing(library.options(override.key_or_group))}")
        swept.append(override)
    if not swept:
        raise SpecError("--multirun: nothing varies; give several values, such as optimizer.lr=1e-3,3e-3 seed=range(3)")
    keys = [override.get_key_element() for override in swept]
    if doubled := [key for key in keys if keys.count(key) > 1]:
        raise SpecError(f"{doubled[0]} is given several values twice; write them as one list")
    if (size := math.prod(_count(override) for override in swept)) > MOST:
        raise SpecError(f"--multirun: {size:,} runs and more are over {MOST:,}; take fewer values")
    [points] = BasicSweeper.split_arguments(swept, max_batch_size=None)
    return [[*fixed, *point] for point in points], points


def _count(override: Override) -> int:
    """Return how many values an override has, as far as it matters."""
    return sum(1 for _ in islice(override.sweep_string_iterator(), MOST + 1))


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
