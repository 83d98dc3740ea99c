"""What Slurm's commands say: partitions, jobs and their states; and submitting and cancelling."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlplatform.errors import RunError

LIST = "runs.txt"
"""The runs of an array, a folder a line, in the order of its tasks."""
SECONDS = 60
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "GONE")
GONE = "GONE"
"""The state of a job Slurm has forgotten."""


@dataclass(frozen=True)
class Job:
    """A job, or a task of an array, as Slurm sees it. `why` says why it waits, or where it runs."""

    state: str
    why: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def need() -> None:
    """Raise RunError when this machine has no Slurm."""
    if shutil.which("sbatch") is None:
        told = "launcher=slurm: there is no sbatch on the PATH"
        raise RunError(f"{told}; run this on a login node of the cluster, or leave launcher=slurm away to train here")


def ask(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """Return what a command of Slurm's prints. Raises RunError with its own words, in one line, when it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)
    except FileNotFoundError:
        raise RunError(f"{command[0]}: there is no such command on the PATH; run this on a login node") from None
    except subprocess.TimeoutExpired:
        raise RunError(f"{command[0]}: no answer in {SECONDS} seconds; is the cluster's controller up?") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise RunError(said if said.startswith(command[0]) else f"{command[0]}: {said}")
    return done.stdout.strip()


def partitions() -> list[str]:
    """Return the names of the cluster's partitions."""
    return sorted({name.rstrip("*") for name in ask("sinfo", "--noheader", "--format=%P").split()})


def submit(script: Path, variables: Mapping[str, str]) -> str:
    """Submit a script and return the job's number. Raises RunError with sbatch's own words.

    Nothing of a job this may run in goes along: neither its size nor its ranks.

    Args:
        variables: for the job's environment, beside this process's own.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    said = ask("sbatch", "--parsable", str(script), environment={**kept, **variables})
    return said.partition(";")[0]


def cancel(job: str) -> None:
    """Cancel a job, an array, or a task of one (`12_3`)."""
    ask("scancel", job)


def jobs(numbers: Iterable[str]) -> dict[str, Job]:
    """Return what Slurm knows of jobs and tasks of arrays; one it has forgotten is `GONE`."""
    wanted = set(numbers)
    if not wanted:
        return {}
    found = {}
    for line in ask("squeue", "--noheader", "--array", "--me", "--format=%i|%T|%r|%N").splitlines():
        number, state, reason, nodes = line.split("|", 3)
        found[number] = Job(state, nodes or ("" if reason == "None" else reason))
    return {number: found.get(number) or _past(number) for number in wanted}


def _past(number: str) -> Job:
    """Return how a job ended: by the accounting, and where there is none, by the controller's memory."""
    try:
        said = ask("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={number}", "--format=State,ExitCode")
        state, _, code = said.partition("|")
    except RunError:
        try:
            said = ask("scontrol", "--oneliner", "show", "job", number)
        except RunError:
            return Job(GONE)
        words = {key: value for key, _, value in (word.partition("=") for word in said.split())}
        state, code = words.get("JobState", GONE), words.get("ExitCode", "")
    return Job(state.split()[0], f"exit code {code}" if code not in ("", "0:0") else "") if state else Job(GONE)
