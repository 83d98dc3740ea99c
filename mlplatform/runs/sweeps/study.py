"""A sweep's study: which points were tried, which come next. Several processes on several machines may share it.

Optuna keeps the points; this module adds what a sweep needs on top: that points are counted once, that a point whose
process died is tried again, and that a study is never continued with another space.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from mlplatform.errors import RunError
from mlplatform.runs.sweeps.space import Space, differences, written
from mlplatform.runs.sweeps.sweep import Sweep

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
NOTES = "notes"
"""The one attribute of a trial: who tries it, and what became of it. One, because each costs a transaction."""


@dataclass(frozen=True)
class Point:
    """What one trial sets: override key -> value, as typed."""

    number: int
    values: dict[str, str]
    trial: int = 0
    """Optuna's own number of it, which a run that may be given up reports to."""

    def overrides(self) -> list[str]:
        """Return the point as words of a command line."""
        return [f"{key}={value}" for key, value in self.values.items()]


@dataclass(frozen=True)
class Outcome:
    """What became of a point.

    Args:
        values: metric -> the values of its seeds. runs: their folders. reason: why it failed.
        hopeless: every other point would fail alike, so the sweep stops.
    """

    status: Literal["finished", "pruned", "failed", "stopped"]
    values: Mapping[str, list[float]] = field(default_factory=dict)
    runs: tuple[str, ...] = ()
    reason: str | None = None
    hopeless: bool = False

    def means(self) -> dict[str, float]:
        """Return each metric's mean over the seeds."""
        return {name: sum(values) / len(values) for name, values in self.values.items()}


class Study:
    """The points of one sweep.

    Args:
        folder: of the sweep. name: of the study within its storage. worker: this process's number among those that
            share the study.

    Raises:
        RunError: the storage can't be opened, or holds a study of another space or of other metrics.
    """

    def __init__(self, folder: Path, name: str, sweep: Sweep, space: Space, seed: int, worker: int = 0) -> None:
        self.folder, self.sweep, self.space = folder, sweep, space
        self.total = sweep.search.points(space, sweep.trials)
        self.worker = f"worker-{worker}"
        self.threads = threading.Lock()
        self.distributions = {key: axis.distribution() for key, axis in space.items()}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.address = address(sweep.storage, folder)
        with self._alone():
            self.study = self._opened(name, seed + worker)

    def _opened(self, name: str, seed: int) -> optuna.Study:
        try:
            study = optuna.create_study(
                storage=opened(self.address),
                study_name=name,
                directions=list(self.sweep.metrics.values()),
                sampler=self.sweep.search.sampler(self.space, seed),
                pruner=self.sweep.pruner.pruner() if self.sweep.pruner else optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
        except Exception as error:  # whatever a database's driver raises
            told = " ".join(str(error).split())[:200]
            raise RunError(f"sweep.storage: the study '{name}' can't be opened: {told}") from None
        before = study.user_attrs.get("space")
        if before is None:
            study.set_user_attr("metrics", dict(self.sweep.metrics))
            study.set_user_attr("space", written(self.space))
            return study
        told = f"sweep.storage: holds a study '{name}' of another"
        if found := differences(before, written(self.space)):
            raise RunError(f"{told} search space ({'; '.join(found)}); set experiment= to a new name")
        if (metrics := study.user_attrs["metrics"]) != self.sweep.metrics:
            raise RunError(f"{told} metric ({metrics}, now {self.sweep.metrics}); set experiment= to a new name")
        return study

    @property
    def name(self) -> str:
        return self.study.study_name

    def trials(self) -> list[FrozenTrial]:
        """Return all trials but those whose process died, which are tried again."""
        return [t for t in self.study.get_trials(deepcopy=False) if "again" not in t.user_attrs.get(NOTES, {})]

    def take(self) -> Point | None:
        """Return the next point to try; None when there is none left."""
        with self._alone():
            taken = [t for t in self.trials() if t.state is not TrialState.WAITING]
            if len(taken) >= self.total:
                return None
            trial = self.study.ask(self.distributions)
            trial.set_user_attr(NOTES, {"worker": self.worker})
        return Point(trial.number, {key: str(value) for key, value in trial.params.items()}, trial._trial_id)

    def tell(self, point: Point, outcome: Outcome) -> None:
        """Keep what became of a point; one that was stopped is tried again when the sweep goes on."""
        notes: dict[str, Any] = {"worker": self.worker, "runs": list(outcome.runs)}
        if outcome.reason:
            notes["reason"] = outcome.reason
        if outcome.values:
            notes["seeds"] = {name: list(values) for name, values in outcome.values.items()}
        if outcome.status == "stopped":
            with self._alone():
                self._again(self.study.trials[point.number])
            return
        trial = optuna.Trial(self.study, point.trial)
        trial.set_user_attr(NOTES, notes)
        if outcome.status == "finished":
            means = outcome.means()
            self.study.tell(trial, [means[name] for name in self.sweep.metrics])
        else:
            state = TrialState.PRUNED if outcome.status == "pruned" else TrialState.FAIL
            self.study.tell(trial, state=state)

    def recover(self) -> int:
        """Put back the points whose process died, to be tried again; return how many."""
        with self._alone():
            lost = [t for t in self.trials() if t.state is TrialState.RUNNING and not self._alive(t)]
            for trial in lost:
                self._again(trial)
        return len(lost)

    def _again(self, trial: FrozenTrial) -> None:
        open_trial = optuna.Trial(self.study, trial._trial_id)
        open_trial.set_user_attr(NOTES, {"again": True})
        self.study.tell(open_trial, state=TrialState.FAIL)
        self.study.enqueue_trial(trial.params)

    def _alive(self, trial: FrozenTrial) -> bool:
        """Whether the worker of a trial holds its lock."""
        worker = trial.user_attrs.get(NOTES, {}).get("worker")
        return worker is not None and worker != self.worker and is_working(self.folder, worker)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Be the only one, of all processes and threads, who looks at the points and takes one."""
        with self.threads, (self.folder / ".study.lock").open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield


@contextlib.contextmanager
def working(folder: Path, worker: str) -> Iterator[None]:
    """Say that a worker of a sweep lives. Raises RunError when another process is that worker."""
    with (folder / f".{worker}.lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"{folder}: this sweep is running; wait for it or stop it first") from None
        yield


def is_working(folder: Path, worker: str) -> bool:
    """Whether a worker of a sweep lives."""
    try:
        with (folder / f".{worker}.lock").open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def address(storage: str | None, folder: Path) -> str:
    """Return where a study is, as `opened` takes it."""
    if storage is None:
        return f"sqlite:///{folder.resolve() / 'study.db'}"
    return f"journal:{folder.resolve() / 'study.journal'}" if storage == "journal" else storage


def opened(where: str) -> Any:
    """Open a storage: a database's URL, or `journal:FILE`."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if where.startswith("journal:"):
        return JournalStorage(JournalFileBackend(where.removeprefix("journal:")))
    waits = {"connect_args": {"timeout": 60}} if where.startswith("sqlite") else {}
    return RDBStorage(where, engine_kwargs=waits)
