"""One point of a sweep: a run for each seed, in a process of its own."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mlplatform.errors import PlatformError, did_you_mean, listing
from mlplatform.runs.sweeps import pruning
from mlplatform.runs.sweeps.study import Outcome, Point

Composer = Callable[[list[str]], tuple[dict[str, Any], set[str]]]
"""Returns the config of some overrides, and which of its values came from the environment."""
Job = Callable[[Point], Outcome]
SECONDS_TO_SAVE = 60
"""How long a run that was asked to stop may take before it is killed."""


@cache
def _processes() -> Any:
    """Return what starts a trial's process: a server that imported everything once and is copied for each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlplatform.runs.sweeps.trial", "mlplatform.runs.launch", "mlplatform.runs.worker"])
    return context


class Process:
    """A job on its way.

    Args:
        job: what a point is tried by; it goes to another process, so it is a function of a module, or made of one.
        said: the file that gets what the job prints.
        cores: the processors it may use; None leaves it all.
    """

    def __init__(self, job: Job, point: Point, said: Path, cores: Sequence[int] | None) -> None:
        self.answer, theirs = multiprocessing.Pipe(duplex=False)
        self.process = _processes().Process(target=_child, args=(theirs, job, point, said, cores, dict(os.environ)))
        self.process.start()
        theirs.close()

    def outcome(self) -> Outcome:
        """Wait for what becomes of the point."""
        try:
            found: Outcome = self.answer.recv()
        except EOFError:
            found = Outcome("failed")
        self.process.join()
        if found.status == "failed" and found.reason is None:
            return Outcome("failed", reason=_death(self.process.exitcode))
        return found

    def stop(self) -> None:
        """Ask it to save and end, and kill it when it does not."""
        if self.process.is_alive():
            os.kill(self.process.pid, signal.SIGTERM)
            self.process.join(SECONDS_TO_SAVE)
            self.process.kill()


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"its process was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
    return f"its process ended with exit code {code}"


def _child(
    answer: Connection, job: Job, point: Point, said: Path, cores: Sequence[int] | None, environment: dict[str, str]
) -> None:
    os.setsid()  # Ctrl-C reaches the sweep alone, which tells its runs
    os.environ.update(environment)
    with said.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
        if cores is not None:
            _pin(cores)
        try:
            answer.send(job(point))
        except PlatformError as error:
            answer.send(Outcome("failed", reason=f"{type(error).__name__}: {error}"))
        except Exception as error:
            traceback.print_exc()
            answer.send(Outcome("failed", reason=f"{type(error).__name__}: {error} (see {said})"))


def _pin(cores: Sequence[int]) -> None:
    """Compute on some processors only, with as many threads."""
    import torch

    with contextlib.suppress(AttributeError, OSError):  # a system without it, or processors taken away
        os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    torch.set_num_threads(len(cores))


@dataclass(frozen=True)
class Training:
    """Trains a point once for each seed, and reads what the runs reached.

    Args:
        compose: makes the config of the sweep's own overrides and a point's. seed: of the first run.
        metrics: metric -> `minimize` or `maximize`. sweep: its name.
        study: address, name and pruner of the study, for runs that may be given up.
    """

    compose: Composer
    metrics: dict[str, str]
    seed: int
    seeds: int
    sweep: str
    argv: tuple[str, ...]
    study: dict[str, Any] | None = None

    def __call__(self, point: Point) -> Outcome:
        values: dict[str, list[float]] = {name: [] for name in self.metrics}
        runs: list[str] = []
        for number in range(self.seeds):
            folder, status = self._run(point, self.seed + number, first=number == 0)
            runs.append(str(folder))
            if status != "finished":
                return Outcome("pruned" if status == "pruned" else "stopped", runs=tuple(runs))
            for name, value in reached(folder, self.metrics).items():
                values[name].append(value)
            if missing := [name for name, found in values.items() if len(found) <= number]:
                reason, hopeless = _missing(folder, missing[0])
                return Outcome("failed", runs=tuple(runs), reason=reason, hopeless=hopeless)
        return Outcome("finished", values, tuple(runs))

    def _run(self, point: Point, seed: int, first: bool) -> tuple[Path, str]:
        """Train once; return the run's folder and how it ended."""
        from mlplatform.runs import record
        from mlplatform.runs.launch import prepare, start

        overrides = [*point.overrides(), *([f"seed={seed}"] if "seed" not in point.values else [])]
        config, from_environment = self.compose(overrides)
        folder, experiment = prepare(
            config, overrides=overrides, argv=list(self.argv), from_environment=from_environment
        )
        record.update(folder, sweep={"name": self.sweep, "point": point.number, "values": point.values, "seed": seed})
        os.environ.pop(pruning.VARIABLE, None)
        if self.study is not None and first:
            told = {**self.study, "trial": point.trial, "metric": next(iter(self.metrics))}
            os.environ[pruning.VARIABLE] = json.dumps(told)
        status: str = start(folder, experiment)
        if (folder / pruning.MARK).is_file():
            record.update(folder, status=(status := "pruned"))
        return folder, status


def reached(folder: Path, directions: dict[str, str]) -> dict[str, float]:
    """Return the best of each metric in a run's metrics; those without a finite value are left out."""
    from mlplatform.runs import metrics

    found: dict[str, float] = {}
    rows = metrics.read(folder)
    for name, direction in directions.items():
        if values := [row[name] for row in rows if row.get(name) is not None]:
            found[name] = min(values) if direction == "minimize" else max(values)
    return found


def _missing(folder: Path, name: str) -> tuple[str, bool]:
    """Say why a metric has no value, and whether no run will have one."""
    from mlplatform.runs import metrics

    rows = metrics.read(folder)
    if any(name in row for row in rows):
        return f"{name} was never finite", False
    there = sorted({key for row in rows for key in row} - {"step", "time"})
    return f"sweep.metrics: {name} never appeared{did_you_mean(name, there)}; there are {listing(there)}", True
