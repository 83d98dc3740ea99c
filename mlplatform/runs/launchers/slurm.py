"""Runs as jobs of a Slurm cluster: what a job asks for, and the script it is."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from mlplatform.errors import SpecError, did_you_mean, listing
from mlplatform.registry import Natural, Positive, Spec, Text, block
from mlplatform.runs import slurm
from mlplatform.runs.config_file import read_shown
from mlplatform.runs.folder import OUTPUT, write_whole
from mlplatform.runs.launchers.shell import Bash
from mlplatform.runs.slurm_task import BY_SLURM
from mlplatform.training.strategies import Accelerator, Place

WORKERS = "workers"
"""The folder of what a sweep's workers say."""
PYTHON = shlex.quote(sys.executable)
ADDRESS = (
    'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)',
    "export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
)
TIMES = "'90 min', '12 h' or Slurm's '1-12:00:00', '12:00:00'"
PERIOD = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|seconds?|min|minutes?|h|hours?|days?)\s*")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>[0-5]?\d)(?::(?P<seconds>[0-5]?\d))?")


@block("launcher/slurm")
class Slurm:
    """As a job of a Slurm cluster, which runs the code as it was when it was submitted.

    Args:
        partition, account: Slurm's; null for the cluster's default.
        time: the limit, as 90 min, 12 h or 1-12:00:00; null for the partition's.
        nodes: machines, with a task for each of trainer.devices on each of them.
        cpus_per_task: cores of a task; also its threads.
        gres: what a node must have, such as gpu:4 or gpu:a100:4.
        options: further options of sbatch, as written there: ["--constraint=a100", "--mem=64G"].
        shell: what the job's shell does first: environment modules, variables, lines of its own.
        requeue: a job that is preempted, or whose time is up, saves and goes back into the queue.
        notice: seconds before its time is up at which a job is told.
        at_once: how many jobs of a `--multirun` may run at the same time; null for no limit.
    """

    here = False

    def __init__(
        self,
        *,
        partition: Text | None = None,
        account: Text | None = None,
        time: Text | None = None,
        nodes: Positive = 1,
        cpus_per_task: Positive = 1,
        gres: Text | None = None,
        options: list[Text] = [],  # noqa: B006  (read as data, never changed)
        shell: Annotated[Spec, "shell"] | None = None,
        requeue: bool = True,
        notice: Natural = 120,
        at_once: Positive | None = None,
    ) -> None:
        self.partition, self.account, self.nodes, self.cpus_per_task = partition, account, nodes, cpus_per_task
        self.gres, self.options, self.requeue, self.notice, self.at_once = gres, options, requeue, notice, at_once
        self.shell: Bash = Bash() if shell is None else shell.build()
        self.seconds = None if time is None else seconds(time)
        if self.seconds is not None and self.seconds <= notice:
            told = f"'{time}' is not longer than launcher.notice={notice} seconds; give it more, or a shorter notice"
            raise SpecError(problems=[("launcher.time", told)])
        if wrong := [o for o in options if not o.startswith("-") or "\n" in o]:
            told = f"{wrong[0]!r} is no option of sbatch; write them as '--mem=64G'"
            raise SpecError(problems=[("launcher.options", told)])

    def devices(self, accelerator: Accelerator) -> int:
        """Return how many devices of a node a run takes that is told no number: all GPUs asked for, or one process."""
        return (self._gpus() if accelerator != "cpu" else None) or 1

    def place(self, accelerator: Accelerator, devices: int) -> Place:
        """Return where rank 0 of the job will stand, after asking the cluster whether there can be such a job.

        Raises:
            RunError: this machine has no Slurm, or it does not answer.
            SpecError: no such partition, or numbers of nodes, devices and GPUs that don't fit together.
        """
        slurm.need()
        gpus = self._gpus()
        if gpus is not None and gpus != devices and accelerator != "cpu":
            told = f"{self.gres} is {gpus} GPUs on a node and trainer.devices={devices} uses {devices}; make them equal"
            raise SpecError(problems=[("launcher.gres", told)])
        if accelerator == "cuda" and not gpus and not self.options:
            told = f"trainer.accelerator=cuda and no GPU is asked for; set launcher.gres=gpu:{devices}"
            raise SpecError(problems=[("launcher.gres", told)])
        if self.partition is not None:
            there = slurm.partitions()
            for name in self.partition.split(","):
                if name not in there:
                    told = f"the cluster has no partition '{name}'{did_you_mean(name, there)}; it has {listing(there)}"
                    raise SpecError(problems=[("launcher.partition", told)])
        device = "cuda" if accelerator == "cuda" or (accelerator == "auto" and gpus) else "cpu"
        return Place(device, devices, 0, self.nodes * devices)

    def _gpus(self) -> int | None:
        """Return the GPUs of a node that `gres` asks for; None when it says nothing of GPUs."""
        found = [part.split(":") for part in (self.gres or "").split(",") if part.split(":")[0] == "gpu"]
        return sum(int(part[-1]) if part[-1].isdecimal() else 1 for part in found) if found else None

    def submit(self, folders: Sequence[Path], home: Path) -> str:
        """Submit runs as one job and return its number.

        Args:
            home: the folder of the one run, or another one for an array of several; it gets job.sh.

        Raises:
            RunError: sbatch refuses, in its own words.
        """
        home = home.resolve()
        array = None if folders[0].resolve() == home else len(folders)
        script = self.script(home, read_shown(folders[0]), array)
        if array:
            write_whole(home / slurm.LIST, "".join(f"{folder.resolve()}\n" for folder in folders))
            for number, folder in enumerate(folders):  # so that a run's output is found in the run's folder
                (folder / OUTPUT).symlink_to(os.path.relpath(home / f"{number}.txt", folder))
        return self._submit(home, script)

    def submit_workers(self, sweep: Path, shown: Mapping[str, Any], workers: int) -> str:
        """Submit the workers of a sweep as one job array and return its number. Raises RunError as `submit` does."""
        sweep = sweep.resolve()
        (sweep / WORKERS).mkdir(exist_ok=True)
        return self._submit(sweep, self.workers_script(sweep, shown, workers))

    def _submit(self, home: Path, script: str) -> str:
        write_whole(home / "job.sh", script, 0o755)
        return slurm.submit(home / "job.sh", {name: str(value) for name, value in self.shell.variables.items()})

    def script(self, home: Path, shown: Mapping[str, Any], array: int | None = None) -> str:
        """Return the script of a job that trains.

        Args:
            home: the run's folder; for an array, the one with the list of runs and their outputs.
            shown: the run's config as it may be shown; what is masked comes through sbatch's own environment.
            array: how many runs the job is, for an array.

        Raises:
            SpecError: a line of `shell` holds a secret.
        """
        run = shlex.quote(str(home))
        tasks = None if array is None else f"0-{array - 1}" + (f"%{self.at_once}" if self.at_once else "")
        if array is not None:
            run = f'"$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(home / slurm.LIST))})"'
        name, devices = f"{shown.get('experiment', 'default')}-{home.name}", shown["trainer"].get("devices", 1)
        said = OUTPUT if array is None else "%a.txt"
        asked = self._asked(name, _within(home, said), tasks, self.nodes, devices, self.cpus_per_task)
        step = f'srun --kill-on-bad-exit=1 --cpus-per-task={self.cpus_per_task} {PYTHON} -m mlplatform.worker "$run"'
        return self._written(asked, run, shown, [*ADDRESS, step])

    def workers_script(self, sweep: Path, shown: Mapping[str, Any], workers: int) -> str:
        """Return the script of a sweep's workers: each is a task of an array and has a node's share for one trial.

        A trial starts its own ranks, so the job is one task with the cores of all of them. Raises as `script` does.
        """
        devices = shown["trainer"].get("devices", 1)
        cores, said = self.cpus_per_task * devices, _within(sweep, f"{WORKERS}/%a.txt")
        asked = self._asked(f"{sweep.name}-sweep", said, f"0-{workers - 1}", 1, 1, cores)
        step = f"srun --cpus-per-task={cores} {PYTHON} -m mlplatform.sweep_worker" + (
            ' "$run" --worker "$SLURM_ARRAY_TASK_ID"'
        )
        return self._written(asked, shlex.quote(str(sweep)), shown, [step])

    def _asked(self, name: str, said: str, array: str | None, nodes: int, tasks: int, cores: int) -> list[str]:
        """Return the script's #SBATCH lines."""
        asked = {
            "job-name": name,
            "output": _quoted(said),
            "open-mode": "append",
            "export": "ALL",
            "chdir": _quoted(str(Path.cwd())),
            "array": array,
            "partition": self.partition,
            "account": self.account,
            "time": None if self.seconds is None else _clock(self.seconds),
            "nodes": nodes,
            "ntasks-per-node": tasks,
            "cpus-per-task": cores,
            "gres": self.gres,
            "signal": f"USR1@{self.notice}" if self.notice else None,
        }
        lines = [f"--{name}={value}" for name, value in asked.items() if value is not None]
        lines += ["--requeue" if self.requeue else "--no-requeue", *self.options]
        return [f"#SBATCH {line}" for line in lines]

    def _written(self, asked: list[str], run: str, shown: Mapping[str, Any], end: list[str]) -> str:
        """Return a script: what it asks for, its shell's lines, and at its end what it runs."""
        lines = [
            "#!/usr/bin/env bash",
            *asked,
            "set -e -o pipefail",
            "trap : TERM USR1 USR2  # the tasks save; this shell waits for them",
            f"run={run}",
            f"export OMP_NUM_THREADS={self.cpus_per_task} GOMP_SPINCOUNT=1000",
            *self.shell.written((shown.get("launcher") or {}).get("shell") or {}),
            "# The code as it was submitted comes before any checkout, and before the folder this runs in.",
            'export PYTHONPATH="$run/code${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1',
            f"export {BY_SLURM}={'requeue' if self.requeue else 'stay'}",
            *end,
        ]
        return "\n".join([*lines, ""])


def seconds(text: str) -> int:
    """Return a time limit in seconds. Raises SpecError with the ways to write one."""
    if found := PERIOD.fullmatch(text):
        return round(float(found[1]) * SECONDS[found[2][0]])
    if (found := CLOCK.fullmatch(text)) and (found["seconds"] or found["days"]):
        days, hours, minutes, rest = (int(part or 0) for part in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + rest
    raise SpecError(problems=[("launcher.time", f"'{text}' is no time; write it as {TIMES}")])


def _within(home: Path, name: str) -> str:
    """Return a file of a folder as `--output` takes it, where a % stands for something."""
    return f"{str(home).replace('%', '%%')}/{name}"


def _quoted(text: str) -> str:
    """Return a value as an #SBATCH line takes it."""
    return f'"{text}"' if " " in text else text


def _clock(seconds: int) -> str:
    minutes, hours = -(-seconds // 60) % 60, -(-seconds // 60) // 60
    return f"{hours // 24}-{hours % 24:02d}:{minutes:02d}:00"
