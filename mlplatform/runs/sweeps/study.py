"""A sweep's study: which points were tried, which come next. Several processes on several machines may share it.

Optuna keeps the points; this module adds what a sweep needs on top: that points are counted once, that a point whose
worker stopped or died is given back with the runs it began, which go on where they were, and that a study is never
continued with another space.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from mlplatform.errors import RunError
from mlplatform.runs.sweeps.space import Space, differences, written
from mlplatform.runs.sweeps.sweep import JOURNAL, Sweep
from mlplatform.runs.sweeps.workers import is_working

LOGS = "logs"
"""The folder of what the trials' processes say."""

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
NOTES = "notes"
"""The one attribute of a trial: who tries it, and what became of it. One, because each costs a transaction."""
HOPELESS = "hopeless"
"""The attribute of a study in which no point can succeed: why."""
MOST_DEATHS = 3
"""So often a point may take its worker with it before it has failed."""


@dataclass(frozen=True)
class Point:
    """What one trial sets: override key -> value, as typed."""

    number: int
    values: dict[str, str]
    trial: int = 0
    """Optuna's own number of it, which a run that may be given up reports to."""
    runs: tuple[str, ...] = ()
    """Runs an earlier trial of it began, in the order of the seeds: they go on."""

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
        self.worker, self.own = worker, set[int]()
        self.threads = threading.Lock()
        self.distributions = {key: axis.distribution() for key, axis in space.items()}
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.address = address(sweep.storage, folder)
        with self.alone():
            self.study = self._opened(name)
            before = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = sweep.search.sampler(space, drawn(seed, worker, before))

    def _opened(self, name: str) -> optuna.Study:
        try:
            study = optuna.create_study(
                storage=opened(self.address),
                study_name=name,
                directions=list(self.sweep.metrics.values()),
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
        """Return the next point to try; None when there is none left.

        Raises:
            RunError: a worker found that no point can succeed.
        """
        with self.alone():
            if reason := self.study.user_attrs.get(HOPELESS):
                raise RunError(reason)
            taken = [t for t in self.trials() if t.state is not TrialState.WAITING]
            if len(taken) >= self.total:
                return None
            trial = self.study.ask(self.distributions)
            before = trial.user_attrs.get(NOTES, {})
            trial.set_user_attr(NOTES, {**before, "worker": self.worker})
            self.own.add(trial.number)
        values = {key: str(value) for key, value in trial.params.items()}
        return Point(trial.number, values, trial._trial_id, tuple(before.get("runs", ())))

    def begun(self, point: Point, runs: Sequence[str]) -> None:
        """Keep the folders of a point's runs while it is tried, for whoever tries it again if this worker dies."""
        known = self.study._storage.get_trial(point.trial).user_attrs.get(NOTES, {})
        self._note(point.trial, {**known, "runs": list(runs)})

    def tell(self, point: Point, outcome: Outcome) -> None:
        """Keep what became of a point; one that was stopped is given back."""
        if outcome.status == "stopped":
            with self.alone():
                self._give_back(self.study.trials[point.number], deaths=0)
        else:
            self._end(point, outcome)
        self.own.discard(point.number)  # not before: a point nobody tries would be given back

    def _end(self, point: Point, outcome: Outcome) -> None:
        notes: dict[str, Any] = {"worker": self.worker, "runs": list(outcome.runs)}
        if outcome.reason:
            notes["reason"] = outcome.reason
        if outcome.values:
            notes["seeds"] = {name: list(values) for name, values in outcome.values.items()}
        self._note(point.trial, notes)
        if outcome.hopeless:
            self.study.set_user_attr(HOPELESS, outcome.reason)
        if outcome.status == "finished":
            means = outcome.means()
            self.study.tell(point.number, [means[name] for name in self.sweep.metrics])
        else:
            state = TrialState.PRUNED if outcome.status == "pruned" else TrialState.FAIL
            self.study.tell(point.number, state=state)

    def recover(self) -> tuple[int, list[tuple[Point, Outcome]]]:
        """Give back the points whose worker died.

        Returns:
            How many, and those that did so too often, which have failed now.
        """
        back, failed = 0, []
        with self.alone():
            own = set(self.own)  # before the trials are read: one that ends meanwhile is still in it
            running = [t for t in self.trials() if t.state is TrialState.RUNNING and t.number not in own]
            lost = [t for t in running if not self._alive(t)]
            for trial in lost:
                deaths = trial.user_attrs.get(NOTES, {}).get("deaths", 0) + 1
                if deaths < MOST_DEATHS:
                    self._give_back(trial, deaths)
                    back += 1
                    continue
                values = {key: str(value) for key, value in trial.params.items()}
                told = f"{deaths} workers died that tried it; {LOGS}/ holds what it said"
                outcome = Outcome("failed", runs=tuple(trial.user_attrs[NOTES].get("runs", ())), reason=told)
                failed.append((Point(trial.number, values, trial._trial_id), outcome))
                self._end(*failed[-1])
        return back, failed

    def ended(self) -> bool:
        """Whether as many points ended as there are to be."""
        return sum(trial.state in ENDED for trial in self.trials()) >= self.total

    def _give_back(self, trial: FrozenTrial, deaths: int) -> None:
        """Let a trial count as none, and put its point into the queue with the runs it began."""
        notes = trial.user_attrs.get(NOTES, {})
        self._note(trial._trial_id, {**notes, "again": True})
        self.study.tell(trial.number, state=TrialState.FAIL)
        if trial.params.keys() != self.distributions.keys():
            return  # its worker died as it was drawn: there is no point yet to try again
        handed = {"runs": notes.get("runs", []), "deaths": deaths}
        self.study.enqueue_trial(trial.params, user_attrs={NOTES: handed})

    def _note(self, trial: int, notes: Mapping[str, Any]) -> None:
        self.study._storage.set_trial_user_attr(trial, NOTES, notes)  # a Trial made for it would ask the sampler

    def _alive(self, trial: FrozenTrial) -> bool:
        """Whether the worker of another process that tries this holds its lock."""
        worker = trial.user_attrs.get(NOTES, {}).get("worker")
        return worker is not None and worker != self.worker and is_working(self.folder, worker)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one, of all processes and threads, who looks at the points and takes one."""
        with self.threads, (self.folder / ".study.lock").open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield


def drawn(seed: int, worker: int, before: int) -> int:
    """Return the seed of a sampler: another one for each worker, and for one that begins again after some trials."""
    return int(np.random.SeedSequence([seed, worker, before]).generate_state(1)[0])


def address(storage: str | None, folder: Path) -> str:
    """Return where a study is, as `opened` takes it."""
    if storage is None:
        return f"sqlite:///{folder.resolve() / 'study.db'}"
    return f"journal:{folder.resolve() / 'study.journal'}" if storage == JOURNAL else storage


def opened(where: str) -> Any:
    """Open a storage: a database's URL, or `journal:FILE`."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if where.startswith("journal:"):
        return JournalStorage(JournalFileBackend(where.removeprefix("journal:")))
    waits = {"connect_args": {"timeout": 60}} if where.startswith("sqlite") else {}
    return RDBStorage(where, engine_kwargs=waits)
