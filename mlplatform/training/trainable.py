"""What the engine needs of a task, and where metrics go. The tasks themselves are on a floor beside this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

from mlplatform.models.share import Share


class StepFigures(Protocol):
    """One optimizer step over all ranks."""

    @property
    def loss(self) -> float: ...
    @property
    def grad_norm(self) -> float: ...
    @property
    def targets(self) -> int: ...
    @property
    def tokens(self) -> int: ...


class Trainable(Protocol):
    """A LightningModule with manual optimization whose `training_step` makes one optimizer step."""

    model: nn.Module
    monitor: str
    make_optimizer: Callable[[nn.Module], Optimizer] | None
    clip_norm: float | None
    on_bad_step: Callable[[int, str], None] | None
    share: Share

    @property
    def figures(self) -> StepFigures: ...
    def validation_step(self, batch: dict[str, Tensor], seen: Callable[..., None] | None = None) -> Tensor: ...
    def metrics(self, sums: Tensor) -> dict[str, float]: ...
    def begin_validation(self) -> None: ...
    def measured(self) -> dict[str, float]: ...
    def higher_is_better(self, metric: str) -> bool: ...
    def gauges(self) -> dict[str, float]: ...


class Batches(Protocol):
    """The data of a run, as mlplatform.data.module.DataModule gives it."""

    shape: Any
    material: Any

    @property
    def steps_per_epoch(self) -> float: ...
    def train_dataloader(self) -> Any: ...
    def val_dataloader(self) -> Any: ...


@runtime_checkable
class Recorder(Protocol):
    """Where metrics go. Called by rank 0 alone."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Keep the metrics of the optimizer step with that number (from 1)."""
        ...
