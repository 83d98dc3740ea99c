"""Runs a prepared folder: what one process (or each of several ranks) does from the first line to the last."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from mlplatform.errors import PlatformError, RunError
from mlplatform.generation.generate import generate
from mlplatform.interop import config_json
from mlplatform.registry import Spec, use_plugins
from mlplatform.runs import metrics, record, slurm_task
from mlplatform.runs.config_file import check_complete, read_config, read_shown, secrets_of
from mlplatform.runs.experiment import Experiment
from mlplatform.runs.folder import VARIABLE, held, spared
from mlplatform.runs.screen import Screen, told
from mlplatform.runs.secrets import Scrubber
from mlplatform.runs.stopping import handling
from mlplatform.runs.sweeps.pruning import reporters
from mlplatform.runs.trackers import Recorders, trackers
from mlplatform.runs.weights import load_run
from mlplatform.runs.words import banner, summary
from mlplatform.training.checkpoints import newest_whole, step_of
from mlplatform.training.engine import Result, fit
from mlplatform.training.progress import display
from mlplatform.training.signals import STOPPING, early
from mlplatform.training.strategies import Place

SAMPLE_TOKENS = 120


class Terminated(BaseException):
    """SIGTERM came outside the training loop."""


class Watch:
    """Looks on while a run trains; verify-resume has one of its own."""

    def batches(self, data: Any) -> Any:
        """Return what gives the batches, in place of `data`."""
        return data

    def logged(self, step: int) -> None:
        """The metrics of a step are kept."""

    def saving(self, checkpoint: Path) -> None:
        """A checkpoint is written and not yet in place."""


def run(folder: Path, experiment: Experiment | None = None, watch: Watch | None = None) -> record.Status:
    """Train the run of a folder, from its newest whole checkpoint where it has one.

    Args:
        experiment: the run already built and prepared by whoever made the folder; None reads the folder.

    Returns:
        How it ended: `finished` or `preempted`.

    Raises:
        PlatformError: the status is `failed` then, and error.txt says why.
    """
    watch = watch or Watch()
    if int(os.environ.get("RANK", 0)) > 0:
        return _train(folder, experiment, None, watch)
    scrub = Scrubber(secrets_of(folder).values())
    with held(folder):
        if record.read(folder)["status"] == "finished":
            raise RunError(f"{folder}: this run is finished, and a finished run is never written into")
        try:
            screen = Screen(display(), folder / "log.txt", scrub)
            with handling(_terminate, *STOPPING), spared(folder), screen.warnings(), _full_disk_said(folder):
                if early:
                    _terminate(early.pop(0), None)
                return _train(folder, experiment, screen, watch)
        except (Terminated, KeyboardInterrupt) as stop:  # before the first step or after the last one
            record.update(folder, status="preempted", ended=time.time())
            if isinstance(stop, KeyboardInterrupt):
                raise
            if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # a failure, so that the ranks that wait for us are ended
                slurm_task.end(folder, "preempted")
                raise SystemExit(128 + signal.SIGTERM) from None
            return "preempted"
        except BaseException as error:
            _failed(folder, error, scrub)
            raise


def _train(folder: Path, experiment: Experiment | None, screen: Screen | None, watch: Watch) -> record.Status:
    config = read_config(folder)
    if experiment is None:
        check_complete(folder, config)
        use_plugins(config.get("plugins") or [])
        experiment = Spec.of(config, "run").build()
    assert experiment is not None
    place = Place.find(experiment.trainer.build().accelerator, experiment.trainer["devices"])
    batches = experiment.prepare(place)
    checkpoint, notes = newest_whole(folder / "checkpoints")
    if checkpoint is not None:
        _check_data(folder, batches.record())
    task = experiment.build_task(experiment.build_model())
    if task.reads_records:
        task.settle(experiment.tools, batches.records("validation"))
    kept = Recorders(metrics.Metrics(folder), [], print)
    if screen is not None:
        _begin(folder, screen, task.model, batches.record(), step_of(checkpoint) if checkpoint else 0, notes)
        for name, tool in (("tokenizer", experiment.tools.tokenizer), ("processor", experiment.tools.processor)):
            if tool is not None and not (folder / name).is_dir():
                tool.save(folder / name)
        watching = [*reporters(), *trackers(experiment.logger), *told(screen)]
        kept = Recorders(metrics.Metrics(folder), watching, screen.say)
        kept.start(folder, read_shown(folder))
    hugging_face = _hugging_face_config(task.model)

    def complete(checkpoint: Path) -> None:
        if hugging_face is not None:
            (checkpoint / "config.json").write_text(hugging_face, encoding="utf-8")
        watch.saving(checkpoint)

    try:
        result = fit(
            task,
            watch.batches(batches),
            trainer=experiment.trainer,
            optimizer=experiment.optimizer,
            schedule=experiment.schedule,
            strategy=experiment.strategy,
            seed=experiment.seed,
            folder=folder / "checkpoints",
            resume_from=checkpoint,
            recorder=_Watched(kept, watch),
            show=screen,
            extra=complete,
            noted=lambda fault: record.add_event(folder, *fault),
        )
        if screen is not None:
            _end(folder, result, experiment, task, screen)
    except BaseException as error:
        stopped = isinstance(error, Terminated | KeyboardInterrupt)
        scrub = Scrubber(secrets_of(folder).values())
        kept.finish(*(("preempted",) if stopped else ("failed", scrub(f"{type(error).__name__}: {error}"))))
        raise
    kept.finish(result.status)
    return result.status


class _Watched:
    """A recorder that tells the watch after it."""

    def __init__(self, recorder: Recorders, watch: Watch) -> None:
        self.recorder, self.watch = recorder, watch

    def log(self, step: int, values: dict[str, float]) -> None:
        self.recorder.log(step, values)
        self.watch.logged(step)


def _begin(folder: Path, screen: Screen, model: Any, data: dict[str, Any], step: int, notes: list[str]) -> None:
    """Cut the metrics back to the checkpoint's step, open a session in the record, and say what starts."""
    for line in notes:
        screen.say(line)
    metrics.cut(folder, step)
    known = record.read(folder)
    sessions = [*known.get("sessions", []), {"start": time.time(), "from_step": step}]
    record.update(
        folder,
        status="running",
        error=None,
        again=None,
        sessions=sessions,
        events=[event for event in known.get("events", []) if event["step"] <= step],
        pid=os.getpid(),
        host=socket.gethostname(),
        data=data,
        parameters=sum(p.numel() for p in model.parameters()),
        trained_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        hardware=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        or [f"{os.cpu_count()} CPU cores, torch uses {torch.get_num_threads()}"],
    )
    (folder / "error.txt").unlink(missing_ok=True)
    for line in banner(folder, record.read(folder), read_shown(folder), step):
        screen.say(line)


def _end(folder: Path, result: Result, experiment: Experiment, task: Any, screen: Screen) -> None:
    """Write down how the session ended, with a sample when the run is done, and say it."""
    metrics.write_table(folder)
    sample = None
    if result.status == "finished" and task.goes_on:
        sample = _sample(folder, result.steps, experiment, task, screen)
    sessions = record.read(folder)["sessions"]
    sessions[-1] |= {"end": time.time(), "to_step": result.steps, "status": result.status}
    final = record.update(
        folder,
        status=result.status,
        ended=time.time(),
        steps=result.steps,
        tokens=result.tokens,
        seconds=round(result.seconds, 3),
        best={"step": result.best.step, result.best.metric: result.best.value} if result.best else None,
        metrics=metrics.last_values(metrics.read(folder)),
        sessions=sessions,
    )
    for line in summary(folder, final, sample):
        screen.say(line)


def _sample(folder: Path, step: int, experiment: Experiment, task: Any, screen: Screen) -> str | None:
    """Write a text of the model's into samples/; what can't be sampled from is said and is no failure."""
    try:
        words, start, model = experiment.tools.tokenizer, experiment.prompt, task.model
        if task.share.divides:  # of which the other ranks, by now gone, hold a part
            model = load_run(folder, averaged=False)
        text = generate(model, words, start, max_new_tokens=SAMPLE_TOKENS, seed=experiment.seed)
    except PlatformError as error:
        screen.say(f"no sample: {error}")
        return None
    (folder / "samples").mkdir(exist_ok=True)
    kept = Scrubber(secrets_of(folder).values())(text)
    (folder / "samples" / f"step={step:08d}.txt").write_text(kept, encoding="utf-8")
    return text


def _check_data(folder: Path, now: dict[str, Any]) -> None:
    """Raise RunError when the data are not those the run began with."""
    before = record.read(folder).get("data") or {}
    for name in ("fingerprint", "vocabulary", "samples_per_epoch", "weights"):
        if name in before and before[name] != now[name]:
            told = f"the data changed since the run began: {name} was {before[name]} and is {now[name]}"
            raise RunError(f"{folder}: {told}; put them back, or start a new run with init_from={folder}")


@contextlib.contextmanager
def _full_disk_said(folder: Path) -> Any:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        where = error.filename or folder
        last = newest_whole(folder / "checkpoints")[0]
        kept = f"resume from {last} when there is room" if last else "no checkpoint was written yet"
        raise RunError(f"{where}: can't be written: {error.strerror}; {kept}") from None


def _terminate(number: int, _: Any) -> NoReturn:
    raise Terminated(signal.Signals(number).name)


def _failed(folder: Path, error: BaseException, scrub: Callable[[str], str]) -> None:
    """Say in the record why a run ended; what can't be written any more is left."""
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    attempts = (
        lambda: record.update(
            folder, status="failed", ended=time.time(), error=scrub(reason), again=not isinstance(error, PlatformError)
        ),
        lambda: (folder / "error.txt").write_text(scrub("".join(traceback.format_exception(error))), encoding="utf-8"),
        lambda: metrics.write_table(folder),
    )
    for attempt in attempts:
        try:
            attempt()
        except (OSError, PlatformError) as second:
            print(f"error: {folder}: the failure can't be recorded in full: {second}", file=sys.stderr)


def _hugging_face_config(model: Any) -> str | None:
    """Return the config.json of the checkpoints, where the model's YAML can say one."""
    hf = {} if getattr(model, "adapted", False) else model.spec.get("hf") or {}
    return json.dumps(config_json(model), indent=2) + "\n" if "weights" in hf or "parts" in hf else None


def main(argv: list[str]) -> int:
    """`python -m mlplatform.worker [RUN_FOLDER]`: exit code 0, 2 for a mistake of the user's.

    Without an argument the folder is the one of the environment variable MLPLATFORM_RUN.
    """
    try:
        if len(argv) > 1 or not (argv or os.environ.get(VARIABLE)):
            raise RunError("python -m mlplatform.worker RUN_FOLDER: give the folder")
        folder = Path(argv[0] if argv else os.environ[VARIABLE])
        with _told_to_the_agent():
            slurm_task.end(folder, run(folder))
    except PlatformError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code
    return 0


@contextlib.contextmanager
def _told_to_the_agent() -> Iterator[None]:
    """Write down for torchrun's agent why this rank fails."""
    try:
        yield
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            get_error_handler().record_exception(error)
        raise
