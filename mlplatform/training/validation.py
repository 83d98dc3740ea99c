"""A pass over the validation split."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from mlplatform.errors import DataError


@torch.no_grad()
def validate(trainer: L.Trainer, task: Any, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Return the task's metrics over all batches of all ranks; every target counts the same.

    Args:
        task: a `Trainable` LightningModule. It is left in training mode.

    Raises:
        DataError: the split has no target.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=task.device)
    task.begin_validation()
    task.eval()
    try:
        with trainer.precision_plugin.val_step_context():
            for batch in batches:
                sums += task.validation_step(trainer.strategy.batch_to_device(batch, task.device))
    finally:
        task.train()
    sums = trainer.strategy.reduce(sums, reduce_op="sum")
    if sums[1] == 0:  # type: ignore[index]
        raise DataError(
            "the validation split has no target token; give it more text or set trainer.validate_every=null"
        )
    return {**task.metrics(sums), **task.measured()}
