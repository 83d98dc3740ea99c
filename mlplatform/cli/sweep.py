"""`mlplatform sweep`: many runs of one config, at points a search chooses."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlplatform.cli.arguments import Arguments, Verb, suggest
from mlplatform.cli.axes import split
from mlplatform.cli.compose import Composed, compose
from mlplatform.cli.library import Library
from mlplatform.errors import RunError, SpecError, listing
from mlplatform.registry import Spec
from mlplatform.runs.sweeps.space import Axis, Interval, Space, read, written

MOST_CHECKED = 64
"""Values of one axis that are composed before anything runs; what is wrong with a later one is its trial's failure."""
FILE = "sweep.json"
CHANGEABLE = ("sweep.trials", "sweep.at_once")


def sweep(arguments: Arguments) -> int:
    """Search a space, or go on with a sweep that was stopped. Returns 0, or 1 when no trial succeeded."""
    arguments.plain(most=0)
    if arguments.flag("work"):
        return work(Path(arguments.text("work", "")), arguments.flag("json"))
    folder = _continued(arguments) if arguments.flag("continue") else _begun(arguments)
    return _worked(folder, [*(["--json"] if arguments.flag("json") else [])])


def _worked(folder: Path, options: Sequence[str]) -> int:
    """Work on a sweep by the code it was begun with, in another process; signals are handed on to it."""
    from mlplatform.runs.snapshot import environment
    from mlplatform.runs.stopping import handling

    command = [sys.executable, "-m", "mlplatform.cli.main", "sweep", "--work", str(folder.resolve()), *options]
    process = subprocess.Popen(command, env={**os.environ, **environment(folder)}, start_new_session=True)
    with handling(lambda *_: process.send_signal(signal.SIGTERM), signal.SIGINT, signal.SIGTERM):
        return process.wait()


def _begun(arguments: Arguments) -> Path:
    """Check everything, make the sweep's folder and return it."""
    dirs = [str(Path(given).expanduser().resolve()) for given in arguments.options.get("config-dir", [])]
    library = Library(dirs)
    fixed, typed = split(arguments.overrides(), library)
    if arguments.flag("outputs"):
        fixed.append(f"outputs={arguments.text('outputs', '')}")
    space = {**_stated(compose("train", fixed, dirs).config, library), **typed}
    if not space:
        raise SpecError("nothing varies; give a key several values: mlplatform sweep optimizer.lr=1e-3,3e-3")
    if not compose("train", fixed, dirs).config.get("sweep"):
        fixed.append(f"sweep={'random' if any(isinstance(a, Interval) for a in space.values()) else 'grid'}")
    config = _check(fixed, space, dirs).config
    name = config.get("experiment", "default")
    if name == "default":
        name = f"sweep_{time.strftime('%Y-%m-%d_%H%M%S')}"
    from mlplatform.runs.secrets import Scrubber

    scrub = Scrubber()
    return _make(
        Path(config.get("outputs", "outputs")) / name,
        config.get("plugins") or [],
        {
            "name": name,
            "created": time.time(),
            "argv": scrub.words(["mlplatform", *sys.argv[1:]]),
            "overrides": scrub.words(fixed),
            "config_dirs": dirs,
            "space": written(space),
        },
    )


def _stated(config: dict[str, Any], library: Library) -> dict[str, Axis]:
    """Return the axes that `sweep.space` states."""
    asked = (config.get("sweep") or {}).get("space") or {}
    single, stated = split([f"{key}={text}" for key, text in asked.items()], library)
    if single:
        raise SpecError(f"sweep.space: {single[0]} is one value; write choice(...), range(...) or interval(...)")
    return stated


def _check(fixed: list[str], space: Space, dirs: Sequence[str]) -> Composed:
    """Compose and check the sweep with each axis's values, the others at their first; return the first of them.

    Raises:
        SpecError: a value that can't be, a search that can't search the space, or seeds that vary twice.
    """
    first = {key: axis.ends()[0] for key, axis in space.items()}
    points = [first, *({**first, key: value} for key, axis in space.items() for value in axis.ends()[1:MOST_CHECKED])]
    checked = [compose("train", [*fixed, *(f"{k}={v}" for k, v in point.items())], dirs).check() for point in points]
    result = checked[0]
    with result.located():
        section = Spec(result.config["sweep"], "sweep", "sweep").build()
        section.search.points(space, section.trials)
        if not Spec.of(result.config.get("launcher") or {"kind": "local"}, "launcher", "launcher").build().here:
            told = "trials run on this machine, sweep.at_once of them at a time; for jobs use train --multirun"
            raise SpecError(problems=[("launcher", told)])
        if "seed" in space and section.seeds > 1:
            raise SpecError(problems=[("sweep.seeds", "the seed varies already; leave one of them away")])
    return result


def _make(folder: Path, plugins: Sequence[str], told: dict[str, Any]) -> Path:
    """Make the sweep's folder, with the code as it is now. Raises RunError when another sweep has it."""
    from mlplatform.runs import snapshot
    from mlplatform.runs.folder import write_whole

    if (folder / FILE).exists():
        told_apart = f"mlplatform sweep --continue {folder}, or set experiment= to a new name"
        raise RunError(f"{folder}: holds a sweep already; go on with it: {told_apart}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: can't be made: {error.strerror}; set outputs= to another place") from None
    code = snapshot.take(folder, plugins, told["config_dirs"])
    write_whole(folder / FILE, json.dumps({**told, "code": code}, indent=1) + "\n")
    return folder


def _continued(arguments: Arguments) -> Path:
    """Return the folder of the sweep to go on with, with the changes that were typed."""
    from mlplatform.runs.folder import write_whole

    name = arguments.text("continue", "")
    folder = next(
        (p for p in (Path(name), Path(arguments.text("outputs", "outputs"), name)) if (p / FILE).is_file()), None
    )
    if folder is None:
        raise RunError(f"--continue {name}: no sweep there; a sweep's folder has a {FILE}")
    told = _told(folder)
    missing = {word.partition("=")[0] for word in told["overrides"] if word.endswith("=***")}
    changes = arguments.overrides()
    keys = [word.partition("=")[0] for word in changes]
    if wrong := [key for key in keys if key not in {*CHANGEABLE, *missing}]:
        raise SpecError(f"{wrong[0]} can't change within a sweep; {listing(CHANGEABLE)} can")
    if left := sorted(missing - set(keys)):
        raise RunError(f"{folder / FILE}: {left[0]} was masked; give it again: --continue {name} {left[0]}=...")
    kept = [word for word in told["overrides"] if word.partition("=")[0] not in keys]
    compose("train", [*kept, *changes], told["config_dirs"])
    write_whole(folder / FILE, json.dumps({**told, "overrides": [*kept, *changes]}, indent=1) + "\n")
    return folder


def _told(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / FILE}: can't be read: {error}") from None


def work(folder: Path, as_json: bool = False, worker: int = 0) -> int:
    """Try the points of a sweep's folder until none is left, and say what came of them."""
    from mlplatform.runs.sweeps import summary
    from mlplatform.runs.sweeps.study import Outcome, Point, Study
    from mlplatform.runs.sweeps.sweeping import read as ended
    from mlplatform.runs.sweeps.sweeping import work as try_points
    from mlplatform.runs.sweeps.trial import Training

    told = _told(folder)
    space, dirs = read(told["space"]), _copies(folder)
    fixed = (*told["overrides"], f"experiment={told['name']}", f"outputs={folder.resolve().parent}")
    config = compose("train", fixed, dirs).config
    section = Spec.of(config["sweep"], "sweep", "sweep").build()
    seed = int(config.get("seed", 0))
    study = Study(folder, told["name"], section, space, seed, worker)
    reports = None
    if section.pruner is not None:
        reports = {"address": study.address, "study": study.name, "pruner": config["sweep"]["pruner"]}
    compose_point = partial(composed_point, fixed, dirs)
    argv = tuple(told["argv"])
    job = Training(compose_point, section.metrics, seed, section.seeds, told["name"], argv, reports)
    for line in summary.beginning(folder, config["sweep"]["search"]["kind"], section, space, study.total):
        print(line, file=sys.stderr)

    def say(point: Point, outcome: Outcome, seconds: float) -> None:
        print(summary.line(point, outcome, seconds), file=sys.stderr, flush=True)

    try:
        try_points(study, job, section.at_once, say)
    except KeyboardInterrupt:
        suggest(f"mlplatform sweep --continue {folder}")
        return 130
    rows = ended(folder)
    best = summary.best(rows, section.metrics)
    if as_json:
        print(json.dumps({"sweep": str(folder), "trials": rows, "best": best}, indent=2))
    for line in summary.ending(rows, section.metrics):
        print(line, file=sys.stderr)
    if best:
        again = [*told["overrides"], *(f"{key}={value}" for key, value in best[0]["values"].items())]
        suggest(f"mlplatform report {told['name']}/", f"mlplatform train {shlex.join(_without_sweep(again))}")
    return 0 if best else 1


def _copies(folder: Path) -> tuple[str, ...]:
    """Return the sweep's own copies of the user's folders of options, in their order."""
    found = (folder / "code" / "config_dirs").glob("*")
    return tuple(str(path) for path in sorted(found, key=lambda path: int(path.name.partition("-")[0])))


def _without_sweep(words: Sequence[str]) -> list[str]:
    return [word for word in words if not word.startswith(("sweep=", "sweep."))]


def composed_point(fixed: Sequence[str], dirs: Sequence[str], more: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    """Return the config of one run of a sweep, and the paths of what came from the environment."""
    from mlplatform.cli.main import VERBS
    from mlplatform.cli.train import runnable

    verb: Verb = next(verb for verb in VERBS if verb.name == "sweep")
    result = compose("train", [*fixed, *more], dirs).check()
    config = runnable(result, Arguments(verb, options={"config-dir": list(dirs)}))
    return {**config, "sweep": None}, result.from_environment
