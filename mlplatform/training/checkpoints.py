"""Checkpoints: folders `step=00000300/` that appear whole or not at all, and hold no pickle.

    model.safetensors      the weights, by the model's own names
    ema.safetensors        the averaged weights, where the run averages
    optimizer.safetensors  the optimizer's state: `exp_avg/<parameter>` and so on
    state.json             all else: loops, clock, data position, random numbers, optimizer groups, loss scale
    manifest.json          the step, its validation loss, and each file's size and checksum; written last

A folder is written as `.tmp-...`, every file is flushed to the disk, and then it is renamed. So a run that dies at
any moment leaves the checkpoints before it as they were; should the disk itself lose something, the manifest tells.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mlplatform.errors import CheckpointError, RunError

NAME = re.compile(r"step=(\d{8,})")
MANIFEST, STATE = "manifest.json", "state.json"
PREFIX = "model."
"""What a task's state dict puts before the model's own names."""


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


def damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint, or return None when every file is as its manifest says."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, stated in manifest["files"].items():
            if (size := (path / name).stat().st_size) != stated["bytes"]:
                return f"{name} has {size} bytes and should have {stated['bytes']}"
        for name, stated in manifest["files"].items():
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
        _remove(path)


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
                _remove(path)


class FolderIO(CheckpointIO):
    """Lightning's way of writing and reading checkpoints, as folders of safetensors and JSON.

    Args:
        extra: writes further files into a checkpoint's folder before it is closed, such as a config.json.
    """

    def __init__(self, extra: Callable[[Path], None] | None = None) -> None:
        self.extra = extra

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint. Raises RunError when the disk can't take it; earlier checkpoints stay as they are."""
        path = Path(path)
        temporary = path.parent / f".tmp-{path.name}-{os.getpid()}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            loss = _write(dict(checkpoint), temporary)
            if self.extra is not None:
                self.extra(temporary)
            _close(temporary, checkpoint["global_step"], loss)
            if path.exists():  # a damaged one that this run went back behind
                _remove(path)
            temporary.rename(path)
            _flush(path.parent)
        except (OSError, SafetensorError) as error:
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error)
            reason = "the disk is full" if full else str(error)
            last = newest_whole(path.parent)[0]
            kept = f"the checkpoint before it, {last}, is whole" if last else "there is no checkpoint before it"
            raise RunError(f"{path}: can't write the checkpoint: {reason}; {kept}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint onto the CPU. Raises CheckpointError when it is damaged."""
        path = Path(path)
        if (wrong := damage(path)) is not None:
            raise CheckpointError(f"{path} is damaged: {wrong}; resume from an earlier checkpoint")
        state = json.loads((path / STATE).read_text())
        state["state_dict"] = {PREFIX + name: t for name, t in load_file(path / "model.safetensors").items()}
        if (path / "ema.safetensors").exists():
            state["ema"] = load_file(path / "ema.safetensors")
        state["optimizer_states"] = [_join_optimizer(state.pop("optimizer"), load_file(path / "optimizer.safetensors"))]
        return state

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        _remove(Path(path))


def _write(checkpoint: dict[str, Any], folder: Path) -> float | None:
    """Write everything but the manifest; return the score."""
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in checkpoint.pop("state_dict").items()}
    checkpoint["optimizer"], moments = _split_optimizer(checkpoint.pop("optimizer_states")[0])
    _save(weights, folder / "model.safetensors")
    _save(moments, folder / "optimizer.safetensors")
    if "ema" in checkpoint:
        _save(checkpoint.pop("ema"), folder / "ema.safetensors")
    (folder / STATE).write_text(json.dumps(checkpoint))
    return checkpoint.get("score")


def _close(folder: Path, step: int, score: float | None) -> None:
    """Flush every file, write the manifest, flush it and the folder."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        _flush(path)
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": _checksum(path)}
    manifest = {"format": 1, "step": step, "score": score, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _flush(folder / MANIFEST)
    _flush(folder)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn an optimizer's state dict into JSON and tensors, both by parameter names instead of numbers."""
    names: dict[int, str] = {}
    groups = []
    for group in state["param_groups"]:
        names.update(zip(group["params"], group["param_names"], strict=True))
        groups.append({key: value for key, value in group.items() if key not in ("params", "param_names")})
        groups[-1]["names"] = group["param_names"]
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for number, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{key}/{names[number]}"] = value
            else:
                plain.setdefault(names[number], {})[key] = value
    return {"groups": groups, "plain": plain}, tensors


def _join_optimizer(described: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The reverse of `_split_optimizer`."""
    groups, state, numbers = [], {}, {}
    for group in described["groups"]:
        group = {key: tuple(value) if isinstance(value, list) else value for key, value in group.items()}
        own = list(group.pop("names"))
        numbers.update({name: len(numbers) + i for i, name in enumerate(own)})
        groups.append({**group, "params": [numbers[name] for name in own], "param_names": own})
    for full, tensor in tensors.items():
        key, _, name = full.partition("/")
        state.setdefault(numbers[name], {})[key] = tensor
    for name, entries in described["plain"].items():
        state.setdefault(numbers[name], {}).update(entries)
    return {"state": state, "param_groups": groups}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Take a checkpoint away in one step, then delete it, so that half of one is never found."""
    gone = path.parent / f".tmp-gone-{path.name}-{os.getpid()}"
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
