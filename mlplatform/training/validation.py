"""A pass over the validation split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from mlplatform.errors import DataError
from mlplatform.models.share import Share

Batch = dict[str, Tensor]


def validate(trainer: L.Trainer, task: Any, batches: Iterable[Batch]) -> dict[str, float]:
    """Return the task's metrics over all batches of all ranks. Raises DataError: the split has no target.

    Args:
        task: a `Trainable` LightningModule. It is left in training mode.
    """
    strategy: Any = trainer.strategy
    share: Share = task.share
    task.eval()
    try:
        with trainer.precision_plugin.val_step_context():
            return measure(
                task,
                (strategy.batch_to_device(batch, task.device) for batch in batches),
                share.sum,
            )
    finally:
        task.train()
        share.settle(task.model)


@torch.no_grad()
def measure(
    task: Any,
    batches: Iterable[Batch],
    reduce: Callable[[Tensor], Tensor] = lambda sums: sums,
    seen: Callable[[Batch, Any], None] | None = None,
) -> dict[str, float]:
    """Return a task's metrics over batches on its device; every target counts the same.

    Args:
        reduce: sums over ranks. seen: gets each batch with the model's output.

    Raises:
        DataError: there is no target.
    """
    sums = torch.zeros(3, dtype=torch.float64, device=task.device)
    task.begin_validation()
    for batch in batches:
        sums += task.validation_step(batch, seen)
    sums = reduce(sums)
    if sums[1] == 0:
        raise DataError(
            "the validation split has no target token; give it more text or set trainer.validate_every=null"
        )
    return {**task.metrics(sums), **task.measured()}
