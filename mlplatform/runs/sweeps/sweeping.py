"""Works through a sweep's points: several at once, each in a process of its own, until none is left."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mlplatform.errors import PlatformError, RunError
from mlplatform.runs.sweeps import trials
from mlplatform.runs.sweeps.study import LOGS, Outcome, Point, Study
from mlplatform.runs.sweeps.trial import Job, Process, processes
from mlplatform.runs.sweeps.workers import working
from mlplatform.training.signals import STOPPING, early

Told = Callable[[Point, Outcome, float], None]


def work(study: Study, job: Job, at_once: int, told: Told, cluster_job: str | None = None) -> None:
    """Try points until the study has enough of them.

    The first SIGINT, or signal of a scheduler, has every run save and end; `work` called again for the same study goes
    on with them.

    Args:
        job: tries one point, in another process. at_once: how many at a time, on equal parts of this machine's cores.
        told: is called with each outcome, and the seconds it took.
        cluster_job: what this process is on a cluster.

    Raises:
        RunError: another process is this worker, no point can succeed, or the study's storage fails.
        KeyboardInterrupt: it was stopped.
    """
    with working(study.folder, study.worker, cluster_job):
        _Crew(study, job, at_once, told, in_job=cluster_job is not None).run()


class _Crew:
    """Threads that each try one point at a time; all work is in the points' own processes."""

    def __init__(self, study: Study, job: Job, at_once: int, told: Told, in_job: bool) -> None:
        self.study, self.job, self.told, self.in_job = study, job, told, in_job
        self.shares = shares(at_once)
        self.running: dict[int, Process] = {}
        self.stopping = threading.Event()
        self.stopped_by_user = False
        self.error: Exception | None = None
        self.lock = threading.Lock()
        (study.folder / LOGS).mkdir(exist_ok=True)

    def run(self) -> None:
        threads = [threading.Thread(target=self._work, args=(cores,), daemon=True) for cores in self.shares]
        processes()
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, *STOPPING)}
        if early:  # while this process was starting
            self._stop()
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                time.sleep(0.02)  # a join would keep signals from their handler
                if self.stopping.is_set():
                    self._end_runs()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.error is not None:
            raise self.error
        if self.stopped_by_user:
            raise KeyboardInterrupt

    def _stop(self, *_: Any) -> None:
        self.stopped_by_user = True
        self.stopping.set()

    def _end_runs(self) -> None:
        with self.lock:
            running = list(self.running.values())
        for process in running:
            process.stop(asked=self.in_job)

    def _work(self, cores: Sequence[int] | None) -> None:
        try:
            self._recover()
            while not self.stopping.is_set():
                if (point := self.study.take()) is not None:
                    self._try(point, cores)
                elif not self._recover():
                    break
        except Exception as error:
            self.error = error if isinstance(error, PlatformError) else RunError(f"{self.study.folder}: {error}")
            self.stopping.set()

    def _recover(self) -> int:
        """Give back the points of workers that died; return how many."""
        back, failed = self.study.recover()
        for point, outcome in failed:
            self._note(point, outcome, 0.0)
        return back

    def _try(self, point: Point, cores: Sequence[int] | None) -> None:
        began = time.monotonic()
        with self.lock:
            process = Process(self.job, point, self.study.folder / LOGS / f"trial-{point.number:04d}.txt", cores)
            self.running[point.number] = process
        outcome = process.outcome(partial(self.study.begun, point))
        with self.lock:
            del self.running[point.number]
        if self.stopping.is_set() and outcome.status == "failed":
            outcome = Outcome("stopped", runs=outcome.runs)
        if outcome.status == "stopped":
            self.stopping.set()
        self.study.tell(point, outcome)
        self._note(point, outcome, time.monotonic() - began)
        if outcome.hopeless:
            raise RunError(str(outcome.reason))

    def _note(self, point: Point, outcome: Outcome, seconds: float) -> None:
        if outcome.status != "stopped":
            with self.study.alone():  # appending is not atomic on every file system that machines share
                trials.add(
                    self.study.folder,
                    trial=point.number,
                    values=point.values,
                    status=outcome.status,
                    metrics=outcome.means(),
                    seeds=dict(outcome.values),
                    runs=list(outcome.runs),
                    reason=outcome.reason,
                    seconds=round(seconds, 3),
                )
        with self.lock:
            self.told(point, outcome, seconds)


def shares(at_once: int) -> list[list[int] | None]:
    """Return which processors each of some points tried at once may use; None for all, where there are too few."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if at_once == 1:
        return [None]
    each = max(1, len(cores) // at_once)
    return [[cores[(n * each + i) % len(cores)] for i in range(each)] for n in range(at_once)]
