"""Inside a Slurm job: which rank a task is, and going back into the queue. It imports nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import MutableMapping
from pathlib import Path

from mlplatform.runs import record
from mlplatform.runs.folder import cancelled
from mlplatform.training.signals import remember

BY_SLURM = "MLPLATFORM_SLURM"
"""Environment variable of our jobs: `requeue` or `stay`, what a job does that is told to stop."""
RANKS = {
    "RANK": "SLURM_PROCID",
    "LOCAL_RANK": "SLURM_LOCALID",
    "WORLD_SIZE": "SLURM_NTASKS",
    "GROUP_RANK": "SLURM_NODEID",
    "NODE_RANK": "SLURM_NODEID",
}
SECONDS = 30


def begin(environment: MutableMapping[str, str]) -> None:
    """Take the rank srun gave this task. Outside our jobs nothing happens."""
    if BY_SLURM not in environment:
        return
    remember()
    if int(environment["SLURM_NTASKS"]) > 1:
        environment.update({ours: environment[theirs] for ours, theirs in RANKS.items()})
        environment["LOCAL_WORLD_SIZE"] = str(int(environment["SLURM_NTASKS"]) // int(environment["SLURM_NNODES"]))


def end(folder: Path, status: record.Status) -> None:
    """Put a preempted run's job back into the queue, unless somebody cancelled it. Outside our jobs nothing happens."""
    if BY_SLURM not in os.environ or status != "preempted" or os.environ.get("RANK", "0") != "0":
        return
    if cancelled(folder):
        record.update(folder, status="cancelled")
    elif os.environ[BY_SLURM] == "requeue":
        requeue(folder)


def requeue(folder: Path) -> None:
    """Put this job back into the queue.

    Asked for also where Slurm preempts: it takes a job that leaves within its grace time for completed. A job that is
    no longer running was cancelled by scancel, which a requeue would undo, or is on its way into the queue already.
    """
    job = os.environ["SLURM_JOB_ID"]
    if "JobState=RUNNING" in _scontrol("show", "job", "--oneliner", job):
        print(f"{folder}: saved; job {job} goes back into the queue", flush=True)
        if said := _scontrol("requeue", job):
            print(f"scontrol requeue {job}: {said}", file=sys.stderr)


def worker() -> tuple[str, bool] | None:
    """Return the name of the array task this process is, a sweep's worker, and whether it may go back into the queue.

    Outside our jobs there is none. What it starts is no task of the job any more.
    """
    asked = os.environ.pop(BY_SLURM, None)
    if asked is None:
        return None
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}", asked == "requeue"


def _scontrol(*words: str) -> str:
    try:
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stdout + done.stderr).strip()
