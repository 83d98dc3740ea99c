"""What works on a sweep, with the code the sweep was begun with: it composes each point, and says what came of it."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlplatform.cli.arguments import Arguments, Verb, suggest
from mlplatform.cli.compose import compose
from mlplatform.errors import PlatformError
from mlplatform.registry import Spec
from mlplatform.runs import slurm_task
from mlplatform.runs.folder import cancelled, write_whole
from mlplatform.runs.sweeps.folder import SUMMARY, told
from mlplatform.runs.sweeps.space import read


def main(argv: Sequence[str]) -> int:
    """Work on a sweep's folder. Returns 0, 1 when no trial succeeded, 2 for an error, 130 when it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m mlplatform.sweep_worker")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--worker", type=int, default=0, help="its number among those that share the sweep")
    parser.add_argument("--json", action="store_true", help="print what came of it as JSON")
    given = parser.parse_args(argv)
    try:
        return work(given.folder, given.worker, given.json)
    except PlatformError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code


def work(folder: Path, worker: int, as_json: bool) -> int:
    """Try the points of a sweep's folder until none is left, and say what came of them."""
    from mlplatform.runs.sweeps import summary, trials
    from mlplatform.runs.sweeps.study import Outcome, Point, Study
    from mlplatform.runs.sweeps.sweeping import work as try_points
    from mlplatform.runs.sweeps.trial import Training

    known, task = told(folder), slurm_task.worker()
    space, dirs = read(known["space"]), _copies(folder)
    fixed = (*known["overrides"], f"experiment={known['name']}", f"outputs={folder.resolve().parent}")
    config = compose("train", fixed, dirs).config
    section, seed = Spec.of(config["sweep"], "sweep", "sweep").build(), int(config.get("seed", 0))
    study = Study(folder, known["name"], section, space, seed, worker)
    reports = None
    if section.pruner is not None:
        reports = {"address": study.address, "study": study.name, "pruner": config["sweep"]["pruner"]}
    job = Training(
        partial(composed_point, fixed, dirs),
        section.metrics,
        seed,
        section.seeds,
        known["name"],
        tuple(known["argv"]),
        reports,
        task and task[0],
    )
    for line in summary.beginning(folder, config["sweep"]["search"]["kind"], section, space, study.total):
        print(line, file=sys.stderr)

    def say(point: Point, outcome: Outcome, seconds: float) -> None:
        print(summary.line(point, outcome, seconds), file=sys.stderr, flush=True)

    try:
        try_points(study, job, section.at_once if task is None else 1, say, task and task[0])
    except KeyboardInterrupt:
        if task is None:
            suggest(f"mlplatform sweep --continue {folder}")
        elif task[1] and not cancelled(folder):
            slurm_task.requeue(folder)
        return 130
    rows = trials.read(folder)
    best, lines = summary.best(rows, section.metrics), summary.ending(rows, section.metrics)
    if study.ended():  # whoever tells last sees it
        write_whole(folder / SUMMARY, "".join(f"{line}\n" for line in lines))
    if as_json:
        print(json.dumps({"sweep": str(folder), "trials": rows, "best": best}, indent=2))
    print(*lines, sep="\n", file=sys.stderr)
    if best:
        again = [*known["overrides"], *(f"{key}={value}" for key, value in best[0]["values"].items())]
        suggest(f"mlplatform report {known['name']}/", f"mlplatform train {shlex.join(_of_training(again))}")
    return 0 if best else 1


def _copies(folder: Path) -> tuple[str, ...]:
    """Return the sweep's own copies of the user's folders of options, in their order."""
    found = (folder / "code" / "config_dirs").glob("*")
    return tuple(str(path) for path in sorted(found, key=lambda path: int(path.name.partition("-")[0])))


def _of_training(words: Sequence[str]) -> list[str]:
    """Return the overrides without those of the sweep."""
    return [word for word in words if not word.startswith(("sweep=", "sweep."))]


def composed_point(fixed: Sequence[str], dirs: Sequence[str], more: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    """Return the config of one run of a sweep, which runs where its worker does, and what came of the environment."""
    from mlplatform.cli.main import VERBS
    from mlplatform.cli.train import runnable

    verb: Verb = next(verb for verb in VERBS if verb.name == "sweep")
    result = compose("train", [*fixed, *more], dirs).check()
    config = runnable(result, Arguments(verb, options={"config-dir": list(dirs)}))
    return {**config, "sweep": None, "launcher": None}, result.from_environment
