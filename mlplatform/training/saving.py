"""How a checkpoint gets to the disk while training goes on, each rank writing what it holds, and comes back from it.

Saving takes a copy of the tensors at the step. A thread then writes the copy, flushes it, and hands it over: rank 0
waits until every rank's files are there, writes the manifest with all checksums, and renames the folder into place. The
next save waits for the one before, and so does the end of a run.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import psutil
import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor, distributed

from mlplatform.errors import CheckpointError, RunError
from mlplatform.interop.tensor_files import Written, entries_of, in_file_order, write_tensors
from mlplatform.training.checkpoints import STATE, close, damage, delete, flush, newest_whole, step_of
from mlplatform.training.optimizer_state import join_optimizer, split_optimizer
from mlplatform.training.shards import Piece, Stored, describe, is_spread, own_pieces

log = logging.getLogger(__name__)
PREFIX = "model."
"""What a task's state dict puts before the model's own names."""
PATIENCE, HASTE, GLANCE = 1800.0, 10.0, 0.02
"""Seconds rank 0 waits for the files of other ranks, also when the run is ending, and between two looks."""


class Portion(NamedTuple):
    """What one rank writes of a checkpoint.

    Args:
        rank, world: of those that write; (0, 1) where one writes all.
        files: the pieces of tensors by the name their file begins with. state: all else, as JSON (rank 0).
    """

    path: Path
    rank: int
    world: int
    files: dict[str, dict[str, Piece]]
    state: str
    score: float | None

    @property
    def temporary(self) -> Path:
        """Return where it is written before it is whole."""
        return self.path.parent / f".tmp-{self.path.name}"

    def file(self, stem: str) -> str:
        """Return the name of a file of tensors."""
        return f"{stem}.safetensors" if self.world == 1 else f"{stem}-{self._number}.safetensors"

    def note(self, rank: int) -> Path:
        """Return the file in which a rank says that its part is written, or why it is not."""
        return self.temporary / f".rank-{rank}.json"

    @property
    def _number(self) -> str:
        return f"{self.rank + 1:05d}-of-{self.world:05d}"


class FolderIO(CheckpointIO):
    """Lightning's way of writing and reading checkpoints, as folders of safetensors and JSON.

    Where tensors are spread over ranks, every rank must call `save_checkpoint`; else rank 0 alone does.

    Args:
        extra: writes further files into a checkpoint's folder before it is closed, such as a config.json.
        live: returns the model's tensors by name, so that what is read is spread over ranks as they are.
        kept: called when a checkpoint is in place: the time to delete others.
        background: write while training goes on, where there is memory for a second copy of what is written.
    """

    def __init__(
        self,
        extra: Callable[[Path], None] | None = None,
        *,
        live: Callable[[], Mapping[str, Tensor]] = dict,
        kept: Callable[[], None] | None = None,
        background: bool = False,
    ) -> None:
        self.extra, self.live, self.kept = extra, live, kept
        self.staging = Staging() if background else None
        self.pending: Future[None] | None = None
        self.ending = threading.Event()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Take a checkpoint, and write it or have it written.

        Raises:
            RunError: this one, or the one before it, can't be written; earlier ones stay as they are.
        """
        self.join()
        portion = taken(checkpoint, Path(path))
        if portion.rank == 0:
            with _said(portion.path):
                shutil.rmtree(portion.temporary, ignore_errors=True)
                portion.temporary.mkdir(parents=True)
        if portion.world > 1:
            distributed.barrier()
        if self.staging is None or not self.staging.has_room(portion):
            self._write(portion)
            return
        self.pending = _started(partial(self._write, self.staging.copy(portion)))

    def check(self) -> None:
        """Raise what has gone wrong in the background so far."""
        if self.pending is not None and self.pending.done():
            self.join()

    def join(self, last: bool = False) -> None:
        """Wait for the checkpoint that is being written, and raise what went wrong with it.

        Args:
            last: the run is ending: ranks that died are not waited for.
        """
        pending, self.pending = self.pending, None
        if pending is not None:
            if last:
                self.ending.set()
            pending.result()

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint onto the CPU, or what of it this rank holds. All ranks call it.

        Raises:
            CheckpointError: it is damaged.
        """
        live = self.live()
        return self.open(Path(path), lambda stored, name: stored.like(name, live.get(name.rpartition("/")[2])))

    def open(self, path: Path, take: Callable[[Stored, str], Any]) -> dict[str, Any]:
        """Return a checkpoint, its tensors as `take` gets them from what is stored. All ranks call it.

        Raises:
            CheckpointError: it is damaged.
        """
        if (wrong := _damage(path)) is not None:
            raise CheckpointError(f"{path} is damaged: {wrong}; resume from an earlier checkpoint")
        state = json.loads((path / STATE).read_text())

        def read(stem: str) -> dict[str, Any]:
            stored = Stored(path, stem)
            return {name: take(stored, name) for name in stored}

        state["state_dict"] = {PREFIX + name: tensor for name, tensor in read("model").items()}
        if averaged := read("ema"):
            state["ema"] = averaged
        state["optimizer_states"] = [join_optimizer(state.pop("optimizer"), read("optimizer"))]
        return state

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        delete(Path(path))

    def teardown(self) -> None:
        """Lightning says that its trainer ends; whoever made this joins it."""

    def _write(self, portion: Portion) -> None:
        """Write this rank's files; rank 0 then closes the checkpoint, or takes away what there is of it."""
        with _said(portion.path):
            try:
                written = {portion.file(stem): _save(pieces, portion, stem) for stem, pieces in portion.files.items()}
                if portion.rank == 0:
                    self._close(portion, written)
                else:
                    _tell(portion, {"files": {name: file._asdict() for name, file in written.items()}})
            except OSError as error:
                if portion.rank > 0:
                    _tell(portion, {"error": str(error)})
                raise
            finally:
                if portion.rank == 0:
                    shutil.rmtree(portion.temporary, ignore_errors=True)
        if portion.rank == 0 and self.kept is not None:
            self.kept()

    def _close(self, portion: Portion, written: dict[str, Written]) -> None:
        """Wait for the other ranks, write the rest and the manifest, and put the folder into its place."""
        folder = portion.temporary
        (folder / STATE).write_text(portion.state)
        if self.extra is not None:
            self.extra(folder)
        for rank in range(1, portion.world):
            written |= self._heard(portion, rank)
        close(folder, step_of(portion.path), portion.score, written)
        if portion.path.exists():  # a damaged one that this run went back behind
            delete(portion.path)
        folder.rename(portion.path)
        flush(portion.path.parent)

    def _heard(self, portion: Portion, rank: int) -> dict[str, Written]:
        """Wait until a rank has written its part; return its files."""
        note, waited = portion.note(rank), 0.0
        while not note.exists():
            if waited > (HASTE if self.ending.is_set() else PATIENCE):
                told = f"rank {rank} has written nothing for {waited:.0f} s"
                raise OSError(f"{told}; it died, or {portion.path.parent} is not on a disk that all ranks share")
            time.sleep(GLANCE)
            waited += GLANCE
        told = json.loads(note.read_text())
        note.unlink()
        if "error" in told:
            raise OSError(f"rank {rank}: {told['error']}")
        return {name: Written(**file) for name, file in told["files"].items()}


def put_back(trainer: L.Trainer, path: Path) -> dict[str, Any]:
    """Give a run that is under way the weights, the optimizer and the loss scale of a checkpoint; return it."""
    strategy, module, precision = trainer.strategy, trainer.lightning_module, trainer.precision_plugin
    checkpoint = strategy.load_checkpoint(path, weights_only=False)
    module.on_load_checkpoint(checkpoint)
    strategy.load_model_state_dict(checkpoint, strict=module.strict_loading)
    strategy.load_optimizer_state_dict(checkpoint)
    if (scale := checkpoint.get(type(precision).__qualname__)) is not None:
        precision.load_state_dict(scale)
    return checkpoint


class Staging:
    """Copies of a rank's tensors in main memory. They stay: taking memory anew costs ten times the copying."""

    def __init__(self) -> None:
        self.copies: dict[tuple[str, str], Tensor] = {}
        self.refused = False

    def has_room(self, portion: Portion) -> bool:
        """Whether this machine has memory for the copies; says so once when it has not."""
        tensors = [(key, piece.values) for key, piece in _all(portion)]
        needed = sum(t.nbytes for key, t in tensors if not self._fits(key, t))
        room = needed < 0.8 * psutil.virtual_memory().available
        if not room and not self.refused:
            told = f"no memory for a second copy of {needed / 1e9:.1f} GB"
            log.warning("%s: training waits while checkpoints are written", told)
        self.refused = not room
        return room

    def copy(self, portion: Portion) -> Portion:
        """Return the portion with every tensor copied."""
        for key, piece in _all(portion):
            if not self._fits(key, piece.values):
                on_cuda = piece.values.device.type == "cuda"
                self.copies[key] = torch.empty_like(piece.values, device="cpu", pin_memory=on_cuda)
            self.copies[key].copy_(piece.values, non_blocking=True)
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        files = {
            stem: {name: piece._replace(values=self.copies[stem, name]) for name, piece in pieces.items()}
            for stem, pieces in portion.files.items()
        }
        return portion._replace(files=files)

    def _fits(self, key: tuple[str, str], tensor: Tensor) -> bool:
        copy = self.copies.get(key)
        return copy is not None and (copy.shape, copy.dtype) == (tensor.shape, tensor.dtype)


def _all(portion: Portion) -> list[tuple[tuple[str, str], Piece]]:
    return [((stem, name), piece) for stem, pieces in portion.files.items() for name, piece in pieces.items()]


def taken(checkpoint: dict[str, Any], path: Path) -> Portion:
    """Return what this rank writes of a checkpoint as Lightning hands it over; its tensors are still the run's own."""
    rest = dict(checkpoint)
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in rest.pop("state_dict").items()}
    rest["optimizer"], moments = split_optimizer(rest.pop("optimizer_states")[0])
    files = {"model": weights, "optimizer": moments}
    if "ema" in rest:
        files["ema"] = rest.pop("ema")
    spread = any(is_spread(tensor) for tensors in files.values() for tensor in tensors.values())
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if spread else (0, 1)
    pieces = {stem: own_pieces(tensors, rank) for stem, tensors in files.items()}
    return Portion(path, rank, world, pieces, json.dumps(rest) if rank == 0 else "", rest.get("score"))


def _damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint; ranks read a part of its files each and tell the others."""
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return damage(path)
    world = distributed.get_world_size()
    found: list[str | None] = [None] * world
    distributed.all_gather_object(found, damage(path, distributed.get_rank(), world))
    return next((wrong for wrong in found if wrong is not None), None)


def _save(pieces: dict[str, Piece], portion: Portion, stem: str) -> Written:
    entries = entries_of({name: piece.values for name, piece in pieces.items()})
    tensors = (pieces[name].values for name in in_file_order(entries))
    header = describe(pieces) if portion.world > 1 else None
    return write_tensors(portion.temporary / portion.file(stem), entries, tensors, header)


def _tell(portion: Portion, said: dict[str, Any]) -> None:
    note = portion.note(portion.rank)
    draft = note.with_suffix(".draft")
    draft.write_text(json.dumps(said))
    draft.rename(note)


def _started(job: Callable[[], None]) -> Future[None]:
    """Run a job in a thread that ends with the process; a checkpoint it was writing then never was."""
    future: Future[None] = Future()

    def work() -> None:
        try:
            future.set_result(job())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="checkpoint", daemon=True).start()
    return future


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    """Turn a disk's refusal into one line that says which checkpoint is whole."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else str(error)
        last = newest_whole(path.parent)[0]
        kept = f"the checkpoint before it, {last}, is whole" if last else "there is no checkpoint before it"
        raise RunError(f"{path}: can't write the checkpoint: {reason}; {kept}") from None
