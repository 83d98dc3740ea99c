"""How a sweep stands: its workers, here and as jobs, and what came of its trials so far; and stopping it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlplatform.errors import RunError
from mlplatform.runs import slurm
from mlplatform.runs.folder import CANCELLED
from mlplatform.runs.launchers.slurm import WORKERS
from mlplatform.runs.sweeps.folder import told
from mlplatform.runs.sweeps.trials import read
from mlplatform.runs.sweeps.workers import Worker, workers


def standing(sweep: Path) -> dict[str, Any]:
    """Return a sweep's workers, how many trials ended in which way, and how many there are to be."""
    known, there = told(sweep), {worker.number: worker for worker in workers(sweep)}
    tasks: list[str] = known.get("jobs") or []
    jobs = slurm.jobs(tasks) if tasks and shutil.which("squeue") else {}
    rows = [_worker(number, jobs.get(task), task, there.get(number)) for number, task in enumerate(tasks)]
    rows += [_worker(number, None, None, worker) for number, worker in there.items() if number >= len(tasks)]
    ended = Counter(row["status"] for row in read(sweep))
    return {"sweep": str(sweep), "trials": known["trials"], "ended": dict(ended), "workers": rows}


def _worker(number: int, job: slurm.Job | None, task: str | None, worker: Worker | None) -> dict[str, Any]:
    """Return how a worker stands: `running`, `queued`, or `ended`."""
    alive = worker is not None and worker.alive and (task is None or worker.job == task)
    status = "running" if alive else "ended" if job is None or job.ended else "queued"
    if job is not None and job.state == "RUNNING" and not alive:
        status = "starting"
    return {
        "worker": number,
        "status": status,
        "job": task,
        "state": job and job.state,
        "why": job.why if job is not None else worker and worker.host,
        "pid": worker.pid if worker is not None and alive else None,
    }


def is_open(found: Mapping[str, Any]) -> bool:
    """Whether a worker of a sweep runs or waits."""
    return any(row["status"] != "ended" for row in found["workers"])


def check_free(sweep: Path) -> None:
    """Raise RunError when a sweep has workers that run or wait."""
    if open_ones := [row for row in standing(sweep)["workers"] if row["status"] != "ended"]:
        who = f"job {open_ones[0]['job']}" if open_ones[0]["job"] else f"process {open_ones[0]['pid']}"
        told = f"this sweep is {open_ones[0]['status']} ({who})"
        raise RunError(f"{sweep}: {told}; wait for it, or mlplatform cancel {sweep}")


def cancel(sweep: Path, wait: float = 90) -> dict[str, Any]:
    """Stop a sweep's workers: their runs save and are given back, and no job goes into the queue again.

    Raises:
        RunError: none runs or waits, or one runs on another machine and is no job.
    """
    found = standing(sweep)
    if not is_open(found):
        raise RunError(f"{sweep}: nothing of this sweep runs or waits; there is nothing to cancel")
    here = [row for row in found["workers"] if row["status"] != "ended" and row["job"] is None]
    if away := [row for row in here if row["why"] != socket.gethostname()]:
        raise RunError(f"{sweep}: it runs on {away[0]['why']}; stop it there")
    (sweep / CANCELLED).touch()
    for row in here:
        os.kill(row["pid"], signal.SIGTERM)
    for job in {row["job"].partition("_")[0] for row in found["workers"] if row["job"] and row["status"] != "ended"}:
        slurm.cancel(job)
    deadline = time.monotonic() + wait
    while is_open(found) and time.monotonic() < deadline:
        time.sleep(0.5)
        found = standing(sweep)
    return found


def said(sweep: Path) -> list[Path]:
    """Return the files of what a sweep's jobs said, by their workers; of one that runs here, of its trials."""
    jobs = sorted((sweep / WORKERS).glob("*.txt"), key=lambda path: int(path.stem))
    return jobs or sorted((sweep / "logs").glob("*.txt"))
