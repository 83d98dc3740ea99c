"""An exponential moving average of the weights."""

from __future__ import annotations

import contextlib
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mlplatform.errors import CheckpointError
from mlplatform.models.share import Share


class AveragedWeights(Callback):
    """average <- d * average + (1 - d) * weights after each step, with d = min(decay, (1 + steps) / (10 + steps)).

    The average is kept in fp32 whatever the weights' type (in bf16 it would stand still), of what a rank holds of the
    trained parameters: a second copy of that. The ramp of d keeps a short run's average from being its start.

    Args:
        decay: the limit of d.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        own, share = self._weights(pl_module), self._share(pl_module)
        if not self.average:
            self.average = {name: share.held(p).float().clone() for name, p in own.items()}
            return
        if {n: a.shape for n, a in self.average.items()} != {n: share.shape(p) for n, p in own.items()}:
            raise CheckpointError("the checkpoint's averaged weights are not those of this model; set trainer.ema=null")
        self.average = {name: share.part(own[name], a) for name, a in self.average.items()}

    @torch.no_grad()
    def update(self, module: L.LightningModule, steps: int) -> None:
        """Move the average after the step with that number (from 1)."""
        keep = min(self.decay, (1 + steps) / (10 + steps))
        share = self._share(module)
        for name, p in self._weights(module).items():
            self.average[name].lerp_(share.held(p).float(), 1 - keep)

    def applied(self, module: L.LightningModule) -> contextlib.AbstractContextManager[None]:
        """Put the average in the place of the weights for a while."""
        return self._share(module).exchanged({p: self.average[name] for name, p in self._weights(module).items()})

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        own, share = self._weights(pl_module), self._share(pl_module)
        checkpoint["ema"] = {name: share.written(own[name], part) for name, part in self.average.items()}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if "ema" not in checkpoint:
            raise CheckpointError("the checkpoint holds no averaged weights; it was written with trainer.ema=null")
        self.average = checkpoint["ema"]

    @staticmethod
    def _share(module: Any) -> Share:
        return module.share

    @staticmethod
    def _weights(module: L.LightningModule) -> dict[str, torch.nn.Parameter]:
        named = module.model.named_parameters()  # type: ignore[union-attr,operator]
        return {name: p for name, p in named if p.requires_grad}
