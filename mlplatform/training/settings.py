"""The `trainer` section of a run's config."""

from __future__ import annotations

from typing import Annotated, Literal

from mlplatform.errors import SpecError
from mlplatform.registry import Fraction, Interval, Natural, Positive, PositiveFloat, Spec, Text, block
from mlplatform.training.callbacks import Plan
from mlplatform.training.intervals import Length, every
from mlplatform.training.precision import PrecisionName
from mlplatform.training.strategies import Accelerator


@block("trainer/trainer")
class TrainerSettings:
    """How long and how a run trains.

    Args:
        max: the length of the run.
        precision: fp32; bf16-mixed or fp16-mixed (weights in fp32, products in 16 bits); bf16-true (all in bf16); fp8
            (as bf16-mixed, the layers' products in 8 bits, by torchao).
        devices: devices of a machine, one process each; `auto` takes one for `single`, else every CUDA device (on a
            cluster, all of launcher.gres), or without any two processes (there one for a node).
        accelerator: `auto` takes CUDA where there is some.
        clip_norm: largest norm of the gradient; null for no limit.
        log_every, validate_every, checkpoint_every: how often; null for only at the end.
        keep: how many of the newest checkpoints stay. keep_best: how many of the best validation stay too.
        monitor: the metric that says which are best, such as `validation/accuracy`; null for the task's own.
        ema: decay of averaged weights, which validation then uses; null for none.
        compile: torch.compile for each layer; the first step takes a minute.
        activation_checkpointing: layers computed again in the backward pass instead of being kept: `full` for all, or
            path patterns (`["trunk.layers.*[02468]"]`); `selective` for all, but for the results of matrix products and
            attention, which are kept; null for none.
        on_bad_loss: what is done when the loss or the gradient is not finite: stop, skip or roll_back; null for stop.
        timeout: seconds a rank waits for the others in a collective before the run fails.
        restarts: times the ranks are started again, from the last checkpoint, when one of them dies.
    """

    def __init__(
        self,
        *,
        max: Interval,
        precision: Literal["fp32", "bf16-mixed", "bf16-true", "fp16-mixed", "fp8"] = "fp32",
        devices: Positive | Literal["auto"] = 1,
        accelerator: Literal["auto", "cpu", "cuda"] = "auto",
        clip_norm: PositiveFloat | None = 1.0,
        log_every: Interval | None = "10 steps",
        validate_every: Interval | None = "100 steps",
        checkpoint_every: Interval | None = "100 steps",
        keep: Positive = 2,
        keep_best: Natural = 1,
        monitor: Text | None = None,
        ema: Fraction | None = None,
        compile: bool = False,
        activation_checkpointing: Literal["full", "selective"] | list[Text] | None = None,
        on_bad_loss: Annotated[Spec, "bad_loss"] | None = None,
        timeout: Positive = 1800,
        restarts: Natural = 0,
    ) -> None:
        self.max = Length.parse(max)
        if self.max.amount <= 0 or self.max.unit == "%":
            raise SpecError(f"max='{max}' must be more than nothing, in steps, tokens, epochs or time")
        self.precision: PrecisionName = precision
        self.accelerator: Accelerator = accelerator
        self.devices: int | Literal["auto"] = devices
        self.clip_norm = clip_norm
        self.log_every, self.validate_every, self.checkpoint_every = log_every, validate_every, checkpoint_every
        self.keep, self.keep_best, self.monitor, self.ema = keep, keep_best, monitor, ema
        self.compile, self.activation_checkpointing = compile, activation_checkpointing
        self.on_bad_loss, self.timeout, self.restarts = on_bad_loss, timeout, restarts

    def plan(self, steps_per_epoch: float) -> Plan:
        """Return the intervals in steps, tokens or seconds."""
        whole = self.max.resolve(steps_per_epoch)
        names = ("log_every", "validate_every", "checkpoint_every")
        return Plan(whole, *(every(getattr(self, n), steps_per_epoch, whole, f"trainer.{n}") for n in names))
