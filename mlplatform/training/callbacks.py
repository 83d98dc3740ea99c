"""What happens between two optimizer steps, in one place and one order."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from mlplatform.errors import RunError, did_you_mean, listing
from mlplatform.training.checkpoints import folder_name, newest_whole
from mlplatform.training.ema import AveragedWeights
from mlplatform.training.faults import Fault, Faults, Policy
from mlplatform.training.intervals import Clock, Length
from mlplatform.training.meters import Feed, Speed, memory_gb
from mlplatform.training.progress import Display
from mlplatform.training.saving import FolderIO, put_back
from mlplatform.training.schedules import Factor
from mlplatform.training.signals import StopSignals
from mlplatform.training.trainable import Recorder
from mlplatform.training.validation import validate


@dataclass(frozen=True)
class Plan:
    """When a run ends, and when it logs, validates and saves; None for never (but at the end)."""

    whole: Length
    log: Length | None
    validate: Length | None
    save: Length | None


class Best(NamedTuple):
    """The best validation so far, by the metric that chooses."""

    step: int
    metric: str
    value: float


@dataclass(frozen=True)
class Course:
    """When a run does what, and the factor of its learning rate from its start to its end."""

    plan: Plan
    factor: Factor


@dataclass(frozen=True)
class Keeping:
    """Where checkpoints go, through what, and the metric that says which are best.

    Args:
        folder: None saves nothing. monitor: None for the task's own metric.
    """

    folder: Path | None
    io: FolderIO
    monitor: str | None = None


class Listening(NamedTuple):
    """Who hears of a run on this rank: what keeps the metrics, what shows them, what is told of faults."""

    recorder: Recorder | None
    display: Display
    noted: Callable[[Fault], None] | None


class Session(Callback):
    """Drives a run from its first to its last step.

    After each step, in this order: the clock moves, the averaged weights follow, metrics are logged, the run
    validates, saves, and stops if it is done or was asked to. The last step does all of them.

    Args:
        batches: returns the validation loader; None doesn't validate.
        policy: what is done about a loss that is not finite.
    """

    def __init__(
        self,
        course: Course,
        feed: Feed,
        speed: Speed,
        keeping: Keeping,
        *,
        batches: Callable[[], Any] | None,
        ema: AveragedWeights | None,
        listening: Listening,
        signals: StopSignals,
        policy: Policy,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.course, self.plan, self.feed, self.speed, self.keeping = course, course.plan, feed, speed, keeping
        self.batches, self.ema = batches, ema
        self.recorder, self.display, self.noted = listening
        self.faults, self.signals, self.now = Faults(policy, self._fault), signals, now
        plan = course.plan
        self.timed = any(part and part.unit == "seconds" for part in (plan.whole, plan.log, plan.validate, plan.save))
        self.clock = Clock()
        self.window = {"loss": 0.0, "targets": 0}
        self.rate = 0.0
        self.measured: dict[str, float] = {}
        self.score: float | None = None
        self.best: Best | None = None
        self.saved: Path | None = None
        self.preempted: str | None = None
        self.tick = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.tick = self.now()
        self._stop_if_asked(trainer)
        trainer.should_stop = self.preempted is not None or self.plan.whole.reached(self.clock)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Set the learning rate of this step."""
        before = self.clock
        after = replace(before, steps=before.steps + 1, tokens=before.tokens + self._figures(pl_module).tokens)
        unit = self.plan.whole.unit
        factor = self.course.factor(before.read(unit), after.read(unit))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.keeping.io.check()
        before = self._advance(trainer, pl_module)
        well = self.faults.settle(self.clock.steps, self._figures(pl_module).loss, partial(self._go_back, trainer))
        if self.ema is not None and well:
            self.ema.update(pl_module, self.clock.steps)
        self._stop_if_asked(trainer)
        done, end = self.plan.whole.reached(self.clock), self.preempted is not None
        self._show(pl_module)
        if done or self._due(self.plan.log, before):
            self._log(pl_module)
        if self.batches is not None and (done or self._due(self.plan.validate, before)):
            self._validate(trainer, pl_module)
        if self.keeping.folder is not None and (done or end or (well and self._due(self.plan.save, before))):
            self._save(trainer)
        trainer.should_stop = done or end
        self.score = None

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["clock"], checkpoint["window"] = self.clock.state_dict(), dict(self.window)
        checkpoint["score"], checkpoint["best"] = self.score, self.best
        checkpoint["faults"] = self.faults.state_dict()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.clock, self.window = Clock(**checkpoint["clock"]), dict(checkpoint["window"])
        self.best = None if checkpoint["best"] is None else Best(*checkpoint["best"])
        self.faults.load_state_dict(checkpoint["faults"])

    def _advance(self, trainer: L.Trainer, module: L.LightningModule) -> Clock:
        """Move the clock by one step; return what it was."""
        before, figures, now = self.clock, self._figures(module), self.now()
        self.speed.add(figures.tokens, now - self.feed.began, self.feed.waited)
        seconds = before.seconds + now - self.tick
        if trainer.world_size > 1 and self.timed:  # ranks must agree on what is due
            seconds = trainer.strategy.broadcast(seconds)
        self.tick = now
        self.clock = Clock(before.steps + 1, before.tokens + figures.tokens, seconds)
        if math.isfinite(figures.loss):
            self.window["loss"] += figures.loss * figures.targets
            self.window["targets"] += figures.targets
        return before

    def _due(self, length: Length | None, before: Clock) -> bool:
        return length is not None and length.passed(before, self.clock)

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        """Take note of a signal any rank got, on all ranks at the same step."""
        caught = self.signals.caught
        if trainer.world_size > 1:
            flag = torch.tensor(float(caught is not None), device=trainer.strategy.root_device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            caught = caught or ("a signal to another rank" if flag.item() else None)
        if caught is not None and self.preempted is None:
            self.preempted = caught
            self.display.say(f"{caught}: stopping after step {self.clock.steps}")

    def _show(self, module: L.LightningModule) -> None:
        figures, whole = self._figures(module), self.plan.whole
        now = {**self.measured, "train/loss": figures.loss, "train/lr": self.rate}
        if "perf/tokens_per_second" not in now and self.speed.seconds > 0:
            now["perf/tokens_per_second"] = self.speed.tokens / self.speed.seconds
        self.display.step(self.clock.steps, min(1.0, self.clock.read(whole.unit) / whole.amount), now)

    def _log(self, module: L.LightningModule) -> None:
        self.measured = {**self.speed.report(), "perf/memory_gb": memory_gb(module.device)}
        values = {
            **({"train/loss": self.window["loss"] / self.window["targets"]} if self.window["targets"] else {}),
            "train/grad_norm": self._figures(module).grad_norm,
            "train/lr": self.rate,
            "train/tokens": float(self.clock.tokens),
            **self.measured,
            **self._gauges(module),
        }
        self.window = {"loss": 0.0, "targets": 0}
        self._record(values)

    def _validate(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert self.batches is not None
        averaged = self.ema.applied(module) if self.ema is not None else contextlib.nullcontext()
        with averaged:
            values = validate(trainer, module, self.batches())
        self._judge(module, values)
        self._record(values)
        figures = " ".join(f"{name.partition('/')[2]}={value:.4f}" for name, value in values.items())
        self.display.say(f"step={self.clock.steps} validation: {figures}")

    def _judge(self, module: Any, values: dict[str, float]) -> None:
        """Set the score of this step, lower is better, and the best so far."""
        name = self.keeping.monitor or module.monitor
        if name not in values:
            near = did_you_mean(name, values)
            raise RunError(f"trainer.monitor={name} is no metric of this run{near}; there are {listing(values)}")
        sign = -1 if module.higher_is_better(name) else 1
        self.score = sign * values[name]
        if self.best is None or self.score < sign * self.best.value:
            self.best = Best(self.clock.steps, name, values[name])

    def _save(self, trainer: L.Trainer) -> None:
        assert self.keeping.folder is not None
        self.saved = self.keeping.folder / folder_name(self.clock.steps)
        trainer.save_checkpoint(self.saved, weights_only=False)

    def _go_back(self, trainer: L.Trainer) -> Path | None:
        """Put the weights of the last whole checkpoint in place, on all ranks; return it, None when there is none."""
        self.keeping.io.join()
        found = newest_whole(self.keeping.folder)[0] if self.keeping.folder and trainer.is_global_zero else None
        path = trainer.strategy.broadcast(found)
        if path is not None:
            checkpoint = put_back(trainer, path)
            if self.ema is not None:
                self.ema.on_load_checkpoint(trainer, trainer.lightning_module, checkpoint)
                self.ema.on_train_start(trainer, trainer.lightning_module)
        return path

    def _fault(self, fault: Fault, count: int) -> None:
        self.display.say(f"step={fault.step} {fault.what}")
        self._record({f"faults/{fault.kind}": float(count)})
        if self.noted is not None:
            self.noted(fault)

    def _record(self, values: dict[str, float]) -> None:
        if self.recorder is not None:
            self.recorder.log(self.clock.steps, values)

    @staticmethod
    def _figures(module: L.LightningModule) -> Any:
        return module.figures

    @staticmethod
    def _gauges(module: L.LightningModule) -> dict[str, float]:
        return module.gauges()  # type: ignore[operator]
