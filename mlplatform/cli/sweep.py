"""`mlplatform sweep`: many runs of one config, at points a search chooses; here, or by jobs of a cluster."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlplatform.cli.arguments import Arguments, suggest
from mlplatform.cli.axes import split
from mlplatform.cli.compose import Composed, compose
from mlplatform.cli.library import Library
from mlplatform.errors import RunError, SpecError, listing
from mlplatform.registry import Spec
from mlplatform.runs.launchers.devices import counted
from mlplatform.runs.sweeps import folder as folders
from mlplatform.runs.sweeps.space import Axis, Interval, Space, read, written

MOST_CHECKED = 64
"""Values of one axis that are composed before anything runs; what is wrong with a later one is its trial's failure."""
CHANGEABLE = ("sweep.trials", "sweep.at_once", "launcher.*")


@dataclass(frozen=True)
class Plan:
    """A sweep that was checked: its folder, what sweep.json says, its section, where it runs, its first point."""

    folder: Path
    told: dict[str, Any]
    section: Any
    launcher: Any
    first: Composed

    @property
    def workers(self) -> int:
        """How many jobs it is: no more than there are trials."""
        return min(self.section.at_once, self.told["trials"])

    def shown(self) -> Mapping[str, Any]:
        """Return the config of the first point with its secrets masked."""
        from mlplatform.runs.secrets import masked

        return masked(self.first.config, self.first.from_environment)[0]


def sweep(arguments: Arguments) -> int:
    """Search a space, or go on with a sweep that was stopped. Returns 0, or 1 when no trial succeeded."""
    arguments.plain(most=0)
    goes_on = arguments.flag("continue")
    plan = _continued(arguments) if goes_on else _planned(arguments)
    if arguments.flag("dry-run"):
        print(*_told_dry(plan), sep="\n")
        suggest(arguments.again("sweep"))
        return 0
    from mlplatform.runs.folder import CANCELLED
    from mlplatform.runs.sweeps.standing import check_free

    if goes_on:
        check_free(plan.folder)
        folders.tell(plan.folder, **plan.told)
    else:
        _make(plan)
    (plan.folder / CANCELLED).unlink(missing_ok=True)
    if plan.launcher.here:
        return _worked(plan.folder, ["--json"] if arguments.flag("json") else [])
    return _submitted(plan, new=not goes_on)


def _worked(folder: Path, options: Sequence[str]) -> int:
    """Work on a sweep by the code it was begun with, in another process; signals are handed on to it."""
    from mlplatform.runs.snapshot import environment
    from mlplatform.runs.stopping import handling

    command = [sys.executable, "-m", "mlplatform.sweep_worker", str(folder.resolve()), *options]
    process = subprocess.Popen(command, env={**os.environ, **environment(folder)}, start_new_session=True)
    with handling(lambda *_: process.send_signal(signal.SIGTERM), signal.SIGINT, signal.SIGTERM):
        return process.wait()


def _submitted(plan: Plan, new: bool) -> int:
    """Submit the workers. Raises RunError with the cluster's words; of a new sweep nothing is left then."""
    try:
        job = plan.launcher.submit_workers(plan.folder, plan.shown(), plan.workers)
    except BaseException:
        if new:
            _discard(plan.folder)
        raise
    folders.tell(plan.folder, jobs=[f"{job}_{number}" for number in range(plan.workers)])
    print(f"job array {job} of {plan.workers} workers is in the queue: {plan.folder}")
    suggest(*(f"mlplatform {words}" for words in (f"status {plan.folder}", f"logs {plan.folder} -f")))
    return 0


def _told_dry(plan: Plan) -> list[str]:
    from mlplatform.runs.sweeps.summary import beginning

    section, space = plan.section, read(plan.told["space"])
    search = plan.first.config["sweep"]["search"]["kind"]
    lines = [*beginning(plan.folder, search, section, space, plan.told["trials"])]
    lines.append("all checks passed, nothing was written; the first trial: mlplatform train --dry-run says more")
    if plan.launcher.here:
        return lines
    return [*lines, "", plan.launcher.workers_script(plan.folder.resolve(), plan.shown(), plan.workers).rstrip()]


def _planned(arguments: Arguments) -> Plan:
    """Check everything of a new sweep."""
    dirs = [str(Path(given).expanduser().resolve()) for given in arguments.options.get("config-dir", [])]
    library = Library(dirs)
    fixed, typed = split(arguments.overrides(), library)
    if arguments.flag("outputs"):
        fixed.append(f"outputs={arguments.text('outputs', '')}")
    stated = compose("train", fixed, dirs).config
    space = {**_stated(stated, library), **typed}
    if not space:
        raise SpecError("nothing varies; give a key several values: mlplatform sweep optimizer.lr=1e-3,3e-3")
    if not (stated.get("sweep") or {}).get("kind"):
        fixed.insert(0, f"sweep={'random' if any(isinstance(a, Interval) for a in space.values()) else 'grid'}")
    config = compose("train", fixed, dirs).config
    name = config.get("experiment", "default")
    if name == "default":
        name = f"sweep_{time.strftime('%Y-%m-%d_%H%M%S')}"
    from mlplatform.runs.secrets import Scrubber

    folder = Path(config.get("outputs", "outputs")) / name
    if not _launcher(config).here and not config["sweep"].get("storage"):
        fixed.append("sweep.storage=journal")
    told = {
        "name": name,
        "created": time.time(),
        "argv": Scrubber().words(["mlplatform", *sys.argv[1:]]),
        "overrides": fixed,
        "config_dirs": dirs,
        "space": written(space),
    }
    return _checked_plan(folder, told, fixed, space, dirs)


def _checked_plan(folder: Path, told: dict[str, Any], fixed: list[str], space: Space, dirs: Sequence[str]) -> Plan:
    first = _check(fixed, space, dirs)
    section, launcher = Spec(first.config["sweep"], "sweep", "sweep").build(), _launcher(first.config)
    told = {**told, "trials": section.search.points(space, section.trials), "metrics": section.metrics}
    return Plan(folder, told, section, launcher, first)


def _launcher(config: Mapping[str, Any]) -> Any:
    return Spec.of(config.get("launcher") or {"kind": "local"}, "launcher", "launcher").build()


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
        SpecError: a value that can't be, a search that can't search the space, seeds that vary twice, or what the
            cluster has not.
        RunError: there is no cluster, or it does not answer.
    """
    first = {key: axis.ends()[0] for key, axis in space.items()}
    points = [first, *({**first, key: value} for key, axis in space.items() for value in axis.ends()[1:MOST_CHECKED])]
    checked = [compose("train", [*fixed, *(f"{k}={v}" for k, v in point.items())], dirs).check() for point in points]
    result = checked[0]
    with result.located():
        section = Spec(result.config["sweep"], "sweep", "sweep").build()
        section.search.points(space, section.trials)
        if not (launcher := _launcher(result.config)).here:
            _check_cluster(launcher, result, section.storage)
        if "seed" in space and section.seeds > 1:
            raise SpecError(problems=[("sweep.seeds", "the seed varies already; leave one of them away")])
    return result


def _check_cluster(launcher: Any, result: Composed, storage: str | None) -> None:
    """Check that the cluster can have a sweep's workers, and count their devices. Raises as the launcher does."""
    if launcher.nodes > 1:
        told = f"{launcher.nodes}: a trial of a sweep runs on one node; for runs of several take train --multirun"
        raise SpecError(problems=[("launcher.nodes", told)])
    if storage is not None and storage.startswith("sqlite"):
        told = "SQLite can't be shared by machines; leave it away for a journal, or give another database's URL"
        raise SpecError(problems=[("sweep.storage", told)])
    trainer = counted(Spec(result.config["trainer"], "trainer", "trainer"), result.config["strategy"]["kind"], launcher)
    result.config["trainer"] = trainer.data
    launcher.place(trainer["accelerator"], trainer["devices"])


def _make(plan: Plan) -> None:
    """Make the sweep's folder, with the code as it is now. Raises RunError when another sweep has it."""
    from mlplatform.runs import snapshot

    folders.make(plan.folder)
    try:
        code = snapshot.take(plan.folder, plan.first.config.get("plugins") or [], plan.told["config_dirs"])
        folders.tell(plan.folder, **plan.told, code=code)
    except BaseException:
        _discard(plan.folder)
        raise


def _discard(folder: Path) -> None:
    """Take away what `_make` and a refused submission made; the folder may hold runs of other kinds."""
    for name in (folders.FILE, "job.sh"):
        (folder / name).unlink(missing_ok=True)
    for name in ("code", "workers"):
        shutil.rmtree(folder / name, ignore_errors=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _continued(arguments: Arguments) -> Plan:
    """Check the sweep to go on with, with the changes that were typed."""
    name = arguments.text("continue", "")
    folder = folders.find(name, Path(arguments.text("outputs", "outputs")))
    if folder is None:
        raise RunError(f"--continue {name}: no sweep there; a sweep's folder has a {folders.FILE}")
    told = folders.told(folder)
    missing = {word.partition("=")[0] for word in told["overrides"] if word.endswith("=***")}
    changes = arguments.overrides()
    keys = [word.partition("=")[0] for word in changes]
    wrong = [key for key in keys if key not in {*CHANGEABLE, *missing} and not key.startswith("launcher.")]
    if wrong:
        raise SpecError(f"{wrong[0]} can't change within a sweep; {listing(CHANGEABLE)} can")
    if left := sorted(missing - set(keys)):
        raise RunError(f"{folder / folders.FILE}: {left[0]} was masked; give it again: --continue {name} {left[0]}=...")
    fixed = [*(word for word in told["overrides"] if word.partition("=")[0] not in keys), *changes]
    return _checked_plan(folder, {**told, "overrides": fixed}, fixed, read(told["space"]), told["config_dirs"])
