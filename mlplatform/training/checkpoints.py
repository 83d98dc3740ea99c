"""Checkpoints: folders `step=00000300/` that appear whole or not at all, and hold no pickle.

    model.safetensors      the weights, by the model's own names; `model-00001-of-00002.safetensors` and so on where
                           several ranks wrote what they hold (shards.py), so for the others
    ema.safetensors        the averaged weights, where the run averages
    optimizer.safetensors  the optimizer's state: `exp_avg/<parameter>` and so on
    state.json             all else: loops, clock, data position, random numbers, optimizer groups, loss scale
    manifest.json          the step, its validation loss, and each file's size and checksum; written last

A folder is written as `.tmp-...`, every file is flushed to the disk, and then it is renamed. So a run that dies at
any moment leaves the checkpoints before it as they were; should the disk itself lose something, the manifest tells.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from mlplatform.errors import CheckpointError, RunError
from mlplatform.interop.tensor_files import Written

NAME = re.compile(r"step=(\d{8,})")
MANIFEST, STATE = "manifest.json", "state.json"


def folder_name(step: int) -> str:
    """Return a checkpoint's folder name."""
    return f"step={step:08d}"


def step_of(path: Path) -> int:
    """Return the step a checkpoint's folder name says."""
    found = NAME.fullmatch(path.name)
    if found is None:
        raise CheckpointError(f"{path} is no checkpoint; its name should be like {folder_name(300)}")
    return int(found[1])


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first, damaged ones too."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted((p for p in found if NAME.fullmatch(p.name) and p.is_dir()), key=step_of)


def damage(path: Path, share: int = 0, shares: int = 1) -> str | None:
    """Say what is wrong with a checkpoint, or return None when every file is as its manifest says.

    Args:
        share, shares: read only every so-manieth file, where others read the rest.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, stated in manifest["files"].items():
            if (size := (path / name).stat().st_size) != stated["bytes"]:
                return f"{name} has {size} bytes and should have {stated['bytes']}"
        for name, stated in list(manifest["files"].items())[share::shares]:
            if _checksum(path / name) != stated["sha256"]:
                return f"{name} is not what was written (its checksum differs)"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} can't be read: {error}"
    return None


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint, or None, and a line for each newer one that is damaged."""
    notes = []
    for path in reversed(checkpoints(folder)):
        wrong = damage(path)
        if wrong is None:
            if notes:
                notes.append(f"using the one before: {path}")
            return path, notes
        notes.append(f"{path} is damaged: {wrong}")
    return None, notes


def prune(folder: Path, keep: int, keep_best: int) -> None:
    """Delete all checkpoints but the newest `keep` and the `keep_best` of the lowest score."""
    found = checkpoints(folder)
    scores = {path: score(path) for path in found}
    ranked = sorted((p for p in found if scores[p] is not None), key=lambda p: (scores[p], -step_of(p)))
    for path in set(found) - set(found[-keep:]) - set(ranked[:keep_best]):
        delete(path)


def score(path: Path) -> float | None:
    """Return how good a checkpoint is, lower is better; None when there was no validation at its step."""
    try:
        loss = json.loads((path / MANIFEST).read_text())["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return loss if isinstance(loss, float) and math.isfinite(loss) else None


def clean(folder: Path, resume_from: Path | None) -> None:
    """Make a folder ready for a run that goes on from one of its checkpoints, or begins.

    Deletes what a process that died while saving has left, and checkpoints of later steps: they are damaged, or of a
    future that this run leaves.

    Raises:
        RunError: the run begins, and the folder has checkpoints of another.
    """
    if resume_from is None and (other := newest_whole(folder)[0]) is not None:
        raise RunError(f"{folder} holds the checkpoints of a run, up to {other.name}; resume it or take another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
    if resume_from is None or resume_from.resolve().parent == folder.resolve():
        for path in checkpoints(folder):
            if resume_from is None or step_of(path) > step_of(resume_from):
                delete(path)


def close(folder: Path, step: int, score: float | None, written: Mapping[str, Written]) -> None:
    """Flush what is not flushed yet, write the manifest over every file, flush it and the folder.

    Args:
        written: the files that were flushed, with what was written into them.
    """
    files = {name: told._asdict() for name, told in written.items()}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if name not in files:
            flush(path)
            files[name] = {"bytes": path.stat().st_size, "sha256": _checksum(path)}
    manifest = {"format": 1, "step": step, "score": score, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    flush(folder / MANIFEST)
    flush(folder)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have the system write a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def delete(path: Path) -> None:
    """Take a checkpoint away in one step, then delete it, so that half of one is never found."""
    gone = path.parent / f".tmp-gone-{path.name}-{os.getpid()}"
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
