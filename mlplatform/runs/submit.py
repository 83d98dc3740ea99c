"""Prepared runs that wait for somebody else to start them: their code is frozen, their record says so."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlplatform.errors import RunError
from mlplatform.registry import Spec, use_plugins
from mlplatform.runs import record, slurm, snapshot
from mlplatform.runs.config_file import read_config
from mlplatform.runs.folder import CANCELLED


def launcher_of(config: dict[str, Any]) -> Any:
    """Return the launcher of a run's config."""
    use_plugins(config.get("plugins") or [])
    return Spec.of(config.get("launcher") or {"kind": "local"}, "launcher", "launcher").build()


def submit(launcher: Any, folders: Sequence[Path], home: Path) -> str:
    """Submit prepared runs as one job and return its number.

    Args:
        home: where the job's script goes: the folder of the one run, or that of a multirun.

    Raises:
        RunError: one of them waits or runs already, or the cluster refuses; new folders are gone then.
    """
    before = [record.read(folder) for folder in folders]
    _check_free(folders, before)
    trainer = read_config(folders[0])["trainer"]
    try:
        launcher.place(trainer.get("accelerator", "auto"), trainer.get("devices", 1))
        freeze(folders)
        for folder in folders:
            (folder / CANCELLED).unlink(missing_ok=True)
            record.update(folder, status="queued", error=None)
        job = launcher.submit(folders, home)
    except BaseException:
        for folder, known in zip(folders, before, strict=True):
            if "job" in known or known["sessions"]:
                record.update(folder, **known)
            else:
                shutil.rmtree(folder, ignore_errors=True)
        raise
    for number, folder in enumerate(folders):
        record.update(folder, job=job if folder == home else f"{job}_{number}")
    return job


def freeze(folders: Sequence[Path]) -> None:
    """Give every run the code as it is now; the files are shared."""
    first, plugins = folders[0], read_config(folders[0]).get("plugins") or []
    code = snapshot.take(first, plugins, record.read(first).get("config_dirs", ()))
    for folder in folders:
        if folder != first:
            snapshot.share(first, folder)
        record.update(folder, code=code)


def _check_free(folders: Sequence[Path], records: Sequence[dict[str, Any]]) -> None:
    """Raise RunError when a run has a job that has not ended."""
    numbers = [known["job"] for known in records if "job" in known]
    found = slurm.jobs(numbers) if numbers else {}
    for folder, known in zip(folders, records, strict=True):
        if "job" in known and not found[known["job"]].ended:
            told = f"job {known['job']} of this run is {found[known['job']].state.lower()}"
            raise RunError(f"{folder}: {told}; wait for it, or mlplatform cancel {folder}")
