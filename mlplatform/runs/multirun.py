"""Several runs of one grid: a folder for each, all prepared before the first starts; here, or as one job array.

outputs/<experiment>/multirun/<date_time>/
  multirun.json   the grid as typed, the runs and what differs between them, the job
  job.sh  runs.txt  0.txt  1.txt ...  (an array: its script, its runs, what its tasks say)
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlplatform.errors import PlatformError, RunError
from mlplatform.runs import record
from mlplatform.runs.config_file import read_config
from mlplatform.runs.folder import OUTPUT, cancelled, create, write_whole
from mlplatform.runs.snapshot import environment
from mlplatform.runs.stopping import handling
from mlplatform.runs.submit import freeze, launcher_of, submit

FILE = "multirun.json"
GROUP = "multirun"


@dataclass(frozen=True)
class Point:
    """One run of a grid: what of the command line is its own, and the function that makes its folder."""

    words: list[str]
    prepare: Callable[[], Path]


def prepare_all(points: Sequence[Point]) -> list[Path]:
    """Make the folder of every run.

    Raises:
        PlatformError: one can't be made, with what is its own of the command line; none is left then.
    """
    folders: list[Path] = []
    try:
        for point in points:
            folders.append(point.prepare())
            record.update(folders[-1], status="queued", varied=point.words)
        _check_alike(folders)
    except BaseException as error:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, PlatformError) and len(folders) < len(points):
            raise RunError(
                "\n".join(f"{' '.join(points[len(folders)].words)}: {told}" for told in str(error).splitlines())
            ) from None
        raise
    return folders


def _check_alike(folders: Sequence[Path]) -> None:
    """Raise RunError when the runs don't start alike: a job array has one size and one script."""
    configs = [read_config(folder) for folder in folders]
    for name in ("launcher", "plugins"):
        if any(config.get(name) != configs[0].get(name) for config in configs):
            raise RunError(f"{name}: the runs of one --multirun have the same; start a second one for another")
    if not launcher_of(configs[0]).here and len({c["trainer"].get("devices", 1) for c in configs}) > 1:
        raise RunError(
            "trainer.devices: the tasks of a job array are of one size; start a second --multirun for another"
        )


def begin(folders: Sequence[Path], argv: Sequence[str]) -> Path:
    """Make the folder of a multirun and return it; two that begin in one second get two."""
    config = read_config(folders[0])
    home = create(Path(config.get("outputs", "outputs"), config.get("experiment", "default")), GROUP)
    _write(home, argv=list(argv), created=time.time(), runs=[os.path.relpath(folder, home) for folder in folders])
    for folder in folders:
        record.update(folder, multirun=home.name)
    return home


def _write(home: Path, **changes: Any) -> None:
    path = home / FILE
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_whole(path, json.dumps({**known, **changes}, indent=1) + "\n")


def runs_of(home: Path) -> list[Path]:
    """Return the runs of a multirun's folder; none when it is no such folder."""
    try:
        known = json.loads((home / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [Path(os.path.normpath(home / name)) for name in known["runs"]]


def queue(home: Path, folders: Sequence[Path]) -> str:
    """Submit the runs as one job array and return its number. Raises RunError and leaves nothing when it is refused."""
    launcher = launcher_of(read_config(folders[0]))
    try:
        job = submit(launcher, folders, home)
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    _write(home, job=job)
    return job


def run_here(folders: Sequence[Path], say: Callable[[str], None]) -> None:
    """Run prepared folders in processes of their own, `launcher.at_once` at a time; a failure stops no other.

    The first SIGINT or SIGTERM goes to those that run, which save, and the others are cancelled; the next one kills.
    """
    config = read_config(folders[0])
    at_once, devices = launcher_of(config).at_once, config["trainer"].get("devices", 1)
    threads = max(1, (os.cpu_count() or 1) // (min(at_once, len(folders)) * devices))
    freeze(folders)
    waiting, running, stopped = list(folders), dict[Path, subprocess.Popen[bytes]](), list[int]()

    def stop(number: int, _: Any) -> None:
        stopped.append(number)
        for process in running.values():  # torchrun's parent has ranks to kill itself
            process.kill() if stopped[1:] and devices == 1 else process.terminate()

    with handling(stop, signal.SIGINT, signal.SIGTERM):
        while running or (waiting and not stopped):
            while waiting and len(running) < at_once and not stopped:
                if not cancelled(folder := waiting.pop(0)):
                    running[folder] = _start(folder, threads)
                    say(f"{folder}: starts")
            for folder in [folder for folder, process in running.items() if process.poll() is not None]:
                say(f"{folder}: {_outcome(folder, running.pop(folder).returncode)}")
            time.sleep(0.1)
    for folder in waiting:
        record.update(folder, status="cancelled")


def _start(folder: Path, threads: int) -> subprocess.Popen[bytes]:
    """Start a run's own process, on the code in its folder; what it says goes there too."""
    command = [sys.executable, "-m", "mlplatform.cli.main", "resume", str(folder.resolve())]
    variables = {**os.environ, **environment(folder), "OMP_NUM_THREADS": str(threads)}
    with (folder / OUTPUT).open("ab") as said:
        return subprocess.Popen(command, env=variables, stdout=said, stderr=said, start_new_session=True)


def _outcome(folder: Path, code: int) -> str:
    """Return the status of a run whose process has ended; one that could not say how it ended has failed."""
    known = record.read(folder)
    if known["status"] in ("queued", "running") and code == -signal.SIGTERM:  # before its first step
        known = record.update(folder, status="preempted")
    elif known["status"] in ("queued", "running"):
        told = f"its process ended with exit code {code}; {folder / OUTPUT} holds what it said"
        known = record.update(folder, status="failed", error=told)
    return known["status"] + (f" ({known['error']})" if known.get("error") else "")
