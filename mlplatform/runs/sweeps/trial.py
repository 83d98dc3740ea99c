"""One point of a sweep: a run for each seed, in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

from mlplatform.errors import PlatformError, RunError, did_you_mean, listing
from mlplatform.runs import metrics, record
from mlplatform.runs.folder import is_held
from mlplatform.runs.sweeps import pruning
from mlplatform.runs.sweeps.study import Outcome, Point
from mlplatform.training.signals import STOPPING

Composer = Callable[[list[str]], tuple[dict[str, Any], set[str]]]
"""Returns the config of some overrides, and which of its values came from the environment."""
Begun = Callable[[list[str]], None]
"""Is told of the folders of a point's runs whenever one more was made."""
Job = Callable[[Point, Begun], Outcome]
PR_SET_PDEATHSIG = 1
SECONDS_TO_SAVE = 60
"""How long a run that was asked to stop may take before it is killed."""


@cache
def processes() -> Any:
    """Start what starts the trials' processes, and return it: a server that imported everything once and is copied.

    It must not hear of signals: a scheduler sends them to every process of a job.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlplatform.runs.sweeps.trial", "mlplatform.runs.launch", "mlplatform.runs.worker"])
    resource_tracker.ensure_running()  # or it would be started within, and let SIGTERM through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


class Stopped(BaseException):
    """A trial was asked to stop."""


class Process:
    """A job on its way.

    Args:
        job: what a point is tried by; it goes to another process, so it is a function of a module, or made of one.
        said: the file that gets what the job prints.
        cores: the processors it may use; None leaves it all.
    """

    def __init__(self, job: Job, point: Point, said: Path, cores: Sequence[int] | None) -> None:
        self.answer, theirs = multiprocessing.Pipe(duplex=False)
        self.process = processes().Process(target=_child, args=(theirs, job, point, said, cores, dict(os.environ)))
        self.process.start()
        theirs.close()

    def outcome(self, begun: Begun) -> Outcome:
        """Wait for what becomes of the point."""
        try:
            while not isinstance(found := self.answer.recv(), Outcome):
                begun(found)
        except EOFError:
            found = Outcome("failed")
        self.process.join()
        if found.status == "failed" and found.reason is None:
            return Outcome("failed", reason=_death(self.process.exitcode))
        return found

    def stop(self, asked: bool) -> None:
        """Have it save and end, and kill it when it does not.

        Args:
            asked: a scheduler has told it already. A second signal would end the ranks of a run at once.
        """
        if self.process.is_alive():
            if not asked:
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
    _follow_to_the_grave()
    for number in STOPPING:
        signal.signal(number, _stopped)
    os.environ.update(environment)
    with said.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
        if cores is not None:
            _pin(cores)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # what came meanwhile comes now
            answer.send(job(point, answer.send))
        except Stopped:  # outside of training, which has a way of its own
            answer.send(Outcome("stopped"))
        except PlatformError as error:
            answer.send(Outcome("failed", reason=f"{type(error).__name__}: {error}"))
        except Exception as error:
            traceback.print_exc()
            answer.send(Outcome("failed", reason=f"{type(error).__name__}: {error} (see {said})"))


def _stopped(*_: Any) -> None:
    for number in STOPPING:  # once: the sweep and a scheduler may both say so
        signal.signal(number, signal.SIG_IGN)
    raise Stopped


def _follow_to_the_grave() -> None:
    """Have the system send SIGTERM when the server of the processes ends, as it does when the sweep is killed."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux: the run goes on to its end
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


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
        job: the job of a cluster this is in.
    """

    compose: Composer
    metrics: dict[str, str]
    seed: int
    seeds: int
    sweep: str
    argv: tuple[str, ...]
    study: dict[str, Any] | None = None
    job: str | None = None

    def __call__(self, point: Point, begun: Begun) -> Outcome:
        values: dict[str, list[float]] = {name: [] for name in self.metrics}
        runs = list(point.runs)
        for number in range(self.seeds):
            experiment = None
            if not (number < len(runs) and _goes_on(Path(runs[number]))):
                made, experiment = self._made(point, self.seed + number)
                runs[number:] = [str(made)]
                begun(runs)
            folder = Path(runs[number])
            status = self._run(folder, experiment, point, first=number == 0)
            if status != "finished":
                return Outcome("pruned" if status == "pruned" else "stopped", runs=tuple(runs[: number + 1]))
            for name, value in reached(folder, self.metrics).items():
                values[name].append(value)
            if missing := [name for name, found in values.items() if len(found) <= number]:
                reason, hopeless = _missing(folder, missing[0])
                return Outcome("failed", runs=tuple(runs[: number + 1]), reason=reason, hopeless=hopeless)
        return Outcome("finished", values, tuple(runs))

    def _made(self, point: Point, seed: int) -> tuple[Path, Any]:
        """Make the folder of a run; return it with the experiment."""
        from mlplatform.runs.launch import prepare

        overrides = [*point.overrides(), *([f"seed={seed}"] if "seed" not in point.values else [])]
        config, hidden = self.compose(overrides)
        folder, experiment = prepare(config, overrides=overrides, argv=list(self.argv), from_environment=hidden)
        record.update(folder, status="queued", sweep={"name": self.sweep, "values": point.values, "seed": seed})
        return folder, experiment

    def _run(self, folder: Path, experiment: Any, point: Point, first: bool) -> str:
        """Train, or go on where there is no experiment yet; return how it ended."""
        from mlplatform.runs.launch import start

        known = record.read(folder)
        if known["status"] in ("finished", "pruned"):
            return known["status"]
        record.update(folder, sweep={**known["sweep"], "point": point.number, "job": self.job})
        os.environ.pop(pruning.VARIABLE, None)
        if self.study is not None and first:
            told = {**self.study, "trial": point.trial, "metric": next(iter(self.metrics))}
            os.environ[pruning.VARIABLE] = json.dumps(told)
        status: str = start(folder, experiment)
        if (folder / pruning.MARK).is_file():
            record.update(folder, status=(status := "pruned"))
        return status


def _goes_on(folder: Path) -> bool:
    """Whether a run that an earlier trial of its point began can be gone on with."""
    deadline = time.monotonic() + SECONDS_TO_SAVE
    while is_held(folder) and time.monotonic() < deadline:  # what it was begun by is gone, and it is saving
        time.sleep(0.2)
    try:
        return record.read(folder)["status"] != "failed" and not is_held(folder)
    except RunError:
        return False


def reached(folder: Path, directions: dict[str, str]) -> dict[str, float]:
    """Return the best of each metric in a run's metrics; those without a finite value are left out."""
    found: dict[str, float] = {}
    rows = metrics.read(folder)
    for name, direction in directions.items():
        if values := [row[name] for row in rows if row.get(name) is not None]:
            found[name] = min(values) if direction == "minimize" else max(values)
    return found


def _missing(folder: Path, name: str) -> tuple[str, bool]:
    """Say why a metric has no value, and whether no run will have one."""
    rows = metrics.read(folder)
    if any(name in row for row in rows):
        return f"{name} was never finite", False
    there = sorted({key for row in rows for key in row} - {"step", "time"})
    return f"sweep.metrics: {name} never appeared{did_you_mean(name, there)}; there are {listing(there)}", True
