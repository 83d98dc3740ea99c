"""Runs a task on data, from nothing or from a checkpoint, through Lightning's Trainer."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import torch
from torch import nn

from mlplatform.blocks.moe import mixtures
from mlplatform.errors import RunError, SpecError, did_you_mean, listing
from mlplatform.models.costs import training_flops_per_token
from mlplatform.models.share import Share
from mlplatform.registry import Spec
from mlplatform.training import optimizers, precision
from mlplatform.training.callbacks import Best, Course, Keeping, Listening, Session
from mlplatform.training.checkpoints import clean, newest_whole, prune
from mlplatform.training.ema import AveragedWeights
from mlplatform.training.faults import Fault, Stop
from mlplatform.training.freezing import matches
from mlplatform.training.meters import Feed, Speed, peak_flops
from mlplatform.training.progress import Display, Quiet, display
from mlplatform.training.recompute import products_kept
from mlplatform.training.rng import Randomness
from mlplatform.training.saving import FolderIO
from mlplatform.training.settings import TrainerSettings
from mlplatform.training.signals import StopSignals
from mlplatform.training.strategies import Accelerator, Place
from mlplatform.training.trainable import Batches, Recorder
from mlplatform.training.watchdog import Watchdog

SLACK = 30
UNKNOWN_EPOCH = 1e6
"""Steps of an epoch, before the data is there: many, so that no share of a few epochs is less than a step."""


@dataclass(frozen=True)
class Result:
    """How a run ended; `checkpoint` is the last one this session wrote."""

    status: Literal["finished", "preempted"]
    steps: int
    tokens: int
    seconds: float
    best: Best | None
    checkpoint: Path | None


def preflight(
    trainer: Spec,
    strategy: Spec,
    schedule: Spec | None = None,
    find: Callable[[Accelerator, Any], Place] = Place.find,
) -> Place:
    """Check that a run can run as configured, before anything is built; return where the process stands.

    Args:
        find: returns the place for an accelerator and a number of devices: on this machine, if nobody says otherwise.

    Raises:
        SpecError: devices, strategy or precision that this machine doesn't have, or lengths that don't fit together
            (those in epochs are checked when the data is there).
    """
    settings: TrainerSettings = trainer.build()
    place = find(settings.accelerator, settings.devices)
    arrangement = strategy.build()
    arrangement.check(place, settings.precision)
    if settings.activation_checkpointing == "selective" and not arrangement.keeps_some:
        told = f"strategy={strategy.kind} gathers weights within layers, as often as it likes; set it to full"
        raise SpecError(problems=[("trainer.activation_checkpointing", told)])
    if settings.on_bad_loss is not None and settings.on_bad_loss.kind != "stop" and not arrangement.leaves_out:
        told = f"strategy={strategy.kind} can't take a step back; set trainer.on_bad_loss.kind=stop"
        raise SpecError(problems=[("trainer.on_bad_loss", told)])
    if place.device == "cpu" or torch.cuda.is_available():  # without any, the run is meant for another machine
        precision.check(settings.precision, place.device)
    plan, shape = settings.plan(UNKNOWN_EPOCH), schedule.build() if schedule is not None else None
    if shape is not None and "epoch" not in f"{trainer.data} {schedule.data if schedule else ''}":
        shape.bind(plan.whole, UNKNOWN_EPOCH)
    return place


def fit(
    task: Any,
    data: Batches,
    *,
    trainer: Spec,
    optimizer: Spec,
    schedule: Spec,
    strategy: Spec,
    seed: int = 0,
    folder: Path | None = None,
    resume_from: Path | None = None,
    recorder: Recorder | None = None,
    show: Display | None = None,
    extra: Callable[[Path], None] | None = None,
    noted: Callable[[Fault], None] | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Result:
    """Train a task on data.

    Killed at any moment and called again with `resume_from`, the losses and weights that follow are those of a run
    that was not disturbed: bit for bit with one process on a CPU.

    Args:
        task: a `Trainable` LightningModule. data: its batches.
        trainer, optimizer, schedule, strategy: the sections of the run's config.
        seed: of dropout and whatever else the model draws.
        folder: where checkpoints go; None saves none.
        resume_from: a checkpoint's folder.
        recorder: receives the metrics (rank 0 only).
        show: the progress display; by default a bar on a terminal and lines off one.
        extra: writes further files into each checkpoint.
        noted: gets what went wrong at a step and did not end the run (rank 0 only).
        now: the clock.

    Raises:
        SpecError: settings that contradict each other or the machine.
        CheckpointError: a checkpoint that is damaged or of another model.
        DataError: data that can't be trained on.
        RunError: the loss is not finite, the disk is full, or a second SIGINT.
    """
    settings: TrainerSettings = trainer.build()
    place = _joined(settings)
    arrangement = strategy.build()
    shown: Display = (show or display()) if place.rank == 0 else Quiet()
    watchdog = _watchdog(data)
    feed = Feed(data.train_dataloader(), now, watchdog.each)
    keep = partial(prune, folder, settings.keep, settings.keep_best) if folder is not None else None
    io = FolderIO(extra, live=task.model.state_dict, kept=keep, background=True)
    with StopSignals() as signals, watchdog, _quiet_lightning(), contextlib.closing(shown):
        session = Session(
            _course(settings, schedule, data),
            feed,
            _speed(settings, place, task.model, data.shape.length),
            Keeping(folder, io, settings.monitor),
            batches=_held_out(settings, data, watchdog),
            ema=AveragedWeights(settings.ema) if settings.ema is not None else None,
            listening=Listening(recorder, shown, noted) if place.rank == 0 else Listening(None, shown, None),
            signals=signals,
            policy=settings.on_bad_loss.build() if settings.on_bad_loss is not None else Stop(),
            now=now,
        )
        _prepare(task, settings, optimizer, arrangement.share(place), session)
        callbacks = [Randomness(seed), *([session.ema] if session.ema else []), session]
        engine = _trainer(settings, place, arrangement, task.share, callbacks, io)
        if folder is not None and keep is not None and place.rank == 0:
            clean(folder, resume_from)
            keep()
        with _saved_at_its_end(io, folder), _stall_said(place):
            engine.fit(task, train_dataloaders=feed, ckpt_path=resume_from and str(resume_from), weights_only=False)
    return _result(session)


def _joined(settings: TrainerSettings) -> Place:
    """Return where this process stands, once it has met the others of its run."""
    place = replace(Place.find(settings.accelerator, settings.devices), timeout=settings.timeout)
    place.join()
    return place


def _prepare(task: Any, settings: TrainerSettings, optimizer: Spec, share: Share, session: Session) -> None:
    """Give a task what it trains by: its optimizer, its share of the work, and layers as the settings want them."""
    task.make_optimizer = partial(_optimizer, optimizer)
    task.clip_norm, task.on_bad_step, task.share = settings.clip_norm, session.faults.meet, share
    prepare_layers(task.model, settings)


def _result(session: Session) -> Result:
    clock = session.clock
    status = "finished" if session.plan.whole.reached(clock) else "preempted"
    return Result(status, clock.steps, clock.tokens, clock.seconds, session.best, session.saved)


def _course(settings: TrainerSettings, schedule: Spec, data: Batches) -> Course:
    """Return when the run does what, and its learning rate over that time."""
    plan = settings.plan(data.steps_per_epoch)
    return Course(plan, schedule.build().bind(plan.whole, data.steps_per_epoch))


def _held_out(settings: TrainerSettings, data: Batches, watchdog: Watchdog) -> Callable[[], Any] | None:
    """Return what gives the validation batches; None for a run that doesn't validate."""
    validates = settings.validate_every is not None and len(data.val_dataloader()) > 0
    return (lambda: watchdog.each(data.val_dataloader())) if validates else None


def _watchdog(data: Batches) -> Watchdog:
    """Return what names a source that stalls; workers that stall are told of by the loader itself, before it."""
    shape = data.shape
    return Watchdog(data.material.name, shape.timeout + (SLACK if shape.workers else 0))


def prepare_layers(model: nn.Module, settings: TrainerSettings) -> None:
    """Turn on, in every tower of a model, compilation, recomputation and 8 bits layer by layer. Names of weights stay.

    Raises:
        SpecError: the model has no layers, or none of a pattern's name.
    """
    again = settings.activation_checkpointing
    patterns = ["*"] if isinstance(again, str) else again or []
    towers: Any = {n: m for n, m in model.named_modules() if hasattr(m, "checkpointed") and hasattr(m, "layers")}
    if not towers and (settings.compile or patterns):
        raise SpecError("trainer.compile and trainer.activation_checkpointing need a model made of layers")
    if again == "selective" and settings.compile:
        told = "torch.compile chooses by itself what is computed again; set it to null, or to full"
        raise SpecError(problems=[("trainer.activation_checkpointing", told)])
    paths = [f"{name}.layers.{i}" for name, tower in towers.items() for i in range(len(tower.layers))]
    for pattern in patterns:
        if not any(matches(path, [pattern]) for path in paths):
            told = f"'{pattern}' names no layer{did_you_mean(pattern, paths)}; there are {listing(paths, 4)}"
            raise SpecError(problems=[("trainer.activation_checkpointing", told)])
    for name, tower in towers.items():
        kept = {i for i in range(len(tower.layers)) if not matches(f"{name}.layers.{i}", patterns)}
        tower.checkpointed, tower.kept = len(kept) < len(tower.layers), frozenset(kept)
        if again == "selective":
            tower.contexts = products_kept()
        if settings.precision == "fp8":
            precision.in_8_bits(tower.layers)
        if settings.compile:
            for _, moe in mixtures(tower):  # how many tokens an expert gets is in no shape
                moe.experts.forward = torch.compiler.disable(moe.experts.forward)
            for layer in tower.layers:
                layer.compile()


def _optimizer(spec: Spec, model: nn.Module) -> torch.optim.Optimizer:
    return optimizers.build(spec, model)


def _trainer(
    settings: TrainerSettings, place: Place, arrangement: Any, share: Share, callbacks: list[Any], io: FolderIO
) -> L.Trainer:
    plugins: list[Any] = [arrangement.plugin(settings.precision, place.device), io, place.environment]
    trainer = L.Trainer(
        accelerator="gpu" if place.device == "cuda" else "cpu",
        devices=place.devices,
        num_nodes=max(1, place.world // place.devices),
        strategy=arrangement.build(place, share, settings.clip_norm),
        plugins=plugins,
        callbacks=callbacks,
        max_epochs=-1,
        max_steps=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    # Lightning's own SIGTERM handler runs a collective inside the handler and raises in the middle of a step.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _speed(settings: TrainerSettings, place: Place, model: nn.Module, length: int) -> Speed:
    """Return the meter, with the share of the peak where the device's is known."""
    if place.device != "cuda":
        return Speed(None, None)
    peak = peak_flops(torch.cuda.get_device_name(), precision.compute_dtype(settings.precision))
    return Speed(training_flops_per_token(model, length), None if peak is None else peak * place.world)


@contextlib.contextmanager
def _saved_at_its_end(io: FolderIO, folder: Path | None) -> Iterator[None]:
    """Wait for the last checkpoint however training ends; an error of the run's says what can be gone on from."""
    try:
        yield
        io.join()
    except BaseException as error:
        try:
            io.join(last=True)
        except RunError as second:
            error = RunError(f"{error}; {second}") if isinstance(error, RunError) else error
        if isinstance(error, RunError):
            raise _with_last_checkpoint(error, folder) from None
        raise error


@contextlib.contextmanager
def _stall_said(place: Place) -> Iterator[None]:
    """Say of a collective that got no answer what that means; only the text tells it from other errors of torch."""
    try:
        yield
    except RuntimeError as error:
        if "timed out waiting" not in str(error).lower() or place.world == 1:
            raise
        told = f"rank {place.rank} waited {place.timeout} s for the other ranks (trainer.timeout)"
        raise TimeoutError(f"{told}; one of them stalls, or needs more time for a step") from error


def _with_last_checkpoint(error: RunError, folder: Path | None) -> RunError:
    """Say where the run can go on from."""
    last = newest_whole(folder)[0] if folder is not None else None
    if last is None or str(last) in str(error):
        return error
    return RunError(f"{error}; the last good checkpoint is {last}")


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's tips to itself; its warnings still show, but for those of its own validation and GPUs."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You defined a `validation_step` but have no `val_dataloader`")
            warnings.filterwarnings("ignore", "GPU available but not used")
            warnings.filterwarnings("ignore", "The `srun` command is available")  # processes are the launcher's
            # DeepSpeed's calls:
            warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)  # Lightning's own
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
