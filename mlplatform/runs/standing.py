"""How runs stand: what their records say, corrected by the processes and jobs there are."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlplatform.errors import RunError
from mlplatform.runs import metrics, record, slurm
from mlplatform.runs.config_file import read_shown
from mlplatform.runs.folder import CANCELLED, LOCK, cancelled, is_held

OPEN = ("queued", "starting", "running", "preempted")
BY_JOB = {
    "COMPLETED": "killed",  # it ended well, and its record says that it runs: something ended its processes
    "CANCELLED": "cancelled",
    slurm.GONE: "killed",
}
"""What a run is whose job has ended and whose record says otherwise; of any other state, failed."""


def standing(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return for every run its status, its job and where that is, how far the run came, and what is wrong."""
    records = [record.read(folder) for folder in folders]
    numbers = [job for known in records if known["status"] in OPEN and (job := _job(known))]
    jobs = slurm.jobs(numbers) if numbers and shutil.which("squeue") else {}
    return [_one(folder, known, jobs) for folder, known in zip(folders, records, strict=True)]


def _one(folder: Path, known: dict[str, Any], jobs: dict[str, slurm.Job]) -> dict[str, Any]:
    job = jobs.get(_job(known) or "")
    status, error = known["status"], known.get("error")
    if job is not None and "job" in known:
        status, error = _by_job(folder, status, error, job)
    elif job is not None:  # a trial, whose worker may have gone on to another
        status = "killed" if job.ended and status == "running" else status
    elif status == "running" and "job" not in known and known.get("host") == socket.gethostname():
        status = status if is_held(folder) or not (folder / LOCK).exists() else "killed"
    return {
        "run": str(folder),
        "status": status,
        "step": max([known.get("steps", 0), *(row["step"] for row in metrics.read(folder))]),
        "max": read_shown(folder)["trainer"]["max"],
        "job": _job(known),
        "state": job and job.state,
        "why": job and job.why,
        "code": (known.get("code") or {}).get("sha256"),
        "error": error,
    }


def _job(known: dict[str, Any]) -> str | None:
    """Return the job of a run, or of the worker that tries it in a sweep."""
    return known.get("job") or (known.get("sweep") or {}).get("job")


def _by_job(folder: Path, status: str, error: str | None, job: slurm.Job) -> tuple[str, str | None]:
    """Return the status and the error of a run whose record is open, by its job's state."""
    if not job.ended:
        if status != "running" and job.state == "RUNNING":
            return "starting", error
        return ("queued" if job.state == "PENDING" else status), error
    if cancelled(folder) or job.state == "CANCELLED":
        return "cancelled", None
    if status == "preempted":
        return status, error
    told = f"its job ended as {job.state}{f' ({job.why})' if job.why else ''}; see mlplatform logs {folder}"
    return BY_JOB.get(job.state, "failed"), error or told


def cancel(folders: Sequence[Path], wait: float = 60) -> list[str]:
    """Stop runs for good: each saves after its step, and no job of them goes back into the queue.

    Args:
        wait: seconds to wait for all of them.

    Returns:
        The status of each: one that takes longer to save still says `running`.

    Raises:
        RunError: a run has ended already, or runs on another machine; nothing is stopped then.
    """
    records = [record.read(folder) for folder in folders]
    for folder, known, now in zip(folders, records, standing(folders), strict=True):
        if now["status"] not in OPEN:
            raise RunError(f"{folder}: this run is {now['status']}; there is nothing to cancel")
        if "job" not in known and known.get("host") != socket.gethostname():
            there = f"mlplatform cancel {folder.parent}, its sweep" if _job(known) else "stop it there"
            raise RunError(f"{folder}: it runs on {known.get('host')}; {there}")
    for folder, known in zip(folders, records, strict=True):
        (folder / CANCELLED).touch()
        if "job" in known:
            slurm.cancel(known["job"])
        elif is_held(folder):
            os.kill(known["pid"], signal.SIGTERM)
    deadline = time.monotonic() + wait
    for folder, known in zip(folders, records, strict=True):
        while not (over := _over(folder, known)) and time.monotonic() < deadline:
            time.sleep(0.2)
        if over and record.read(folder)["status"] in OPEN:
            record.update(folder, status="cancelled", ended=time.time())
    return [record.read(folder)["status"] for folder in folders]


def _over(folder: Path, known: dict[str, Any]) -> bool:
    """Whether nothing of a run is active any more."""
    if "job" in known:
        return slurm.jobs([known["job"]])[known["job"]].ended
    return not is_held(folder)
