"""The random numbers of training: python, numpy, torch and CUDA on every rank, saved and restored exactly."""

from __future__ import annotations

import base64
import random
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from mlplatform.models.share import Share


class Randomness(Callback):
    """Keeps training's random numbers a stream of their own.

    The state is put in place as a step begins and taken away as it ends, so that neither validation nor a fresh data
    iterator nor anything else between two steps moves it: what a step draws depends on the steps before it alone.

    Args:
        seed: of the stream's start; each reader of the data has its own, and ranks that read the same draw the same.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.state: dict[str, Any] | None = None
        self.saved: list[dict[str, Any]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        share: Share = pl_module.share  # type: ignore[assignment]
        if len(self.saved) == share.count:
            self.state = self.saved[share.number]
        else:  # a new run, or one that goes on with another number of ranks
            sequence = np.random.SeedSequence((self.seed, trainer.global_step, share.number))
            seed_all(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
            self.state = capture()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.state is not None:
            restore(self.state)

    def on_train_batch_end(self, *_: Any) -> None:
        self.state = capture()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        states: list[Any] = [self.state]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, self.state)
        share: Share = pl_module.share  # type: ignore[assignment]
        checkpoint["rng"] = states[:: trainer.world_size // share.count]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.saved = checkpoint["rng"]


def seed_all(seed: int) -> None:
    """Seed python, numpy, torch and CUDA with one number below 2**63."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture() -> dict[str, Any]:
    """Return the state of all generators as JSON can hold it."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, _pack(np.asarray(words, dtype=np.uint32)), gauss],
        "numpy": [kind, _pack(np.asarray(keys)), int(position), int(has_gauss), float(cached)],
        "torch": _pack(torch.get_rng_state().numpy()),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = _pack(torch.cuda.get_rng_state().numpy())
    return state


def restore(state: dict[str, Any]) -> None:
    """Put all generators into a captured state."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(_unpack(words, np.uint32).tolist()), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, _unpack(keys, np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.from_numpy(_unpack(state["torch"], np.uint8)))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(_unpack(state["cuda"], np.uint8)))


def _pack(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _unpack(text: str, dtype: type) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=dtype).copy()
