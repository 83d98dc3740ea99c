"""Runs a prepared folder: what one process (or each of several ranks) does from the first line to the last."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from mlplatform.errors import PlatformError, RunError
from mlplatform.generation.generate import generate
from mlplatform.interop import config_json
from mlplatform.registry import Spec, use_plugins
from mlplatform.runs import metrics, record
from mlplatform.runs.experiment import Experiment
from mlplatform.runs.export import CONFIG, read_config
from mlplatform.runs.secrets import masked
from mlplatform.runs.trackers import Recorders
from mlplatform.runs.words import banner, summary
from mlplatform.training.checkpoints import newest_whole, step_of
from mlplatform.training.engine import Result, fit
from mlplatform.training.progress import Display, Quiet, display
from mlplatform.training.strategies import Place

SAMPLE_TOKENS = 120


class Kept:
    """A display whose spoken lines also go to the run's log.txt, with plain progress lines once in a while."""

    def __init__(self, shown: Display, path: Path) -> None:
        self.shown, self.path = shown, path
        self.file = path.open("a", encoding="utf-8")

    def step(self, step: int, done: float, values: dict[str, float]) -> None:
        """Show a step."""
        self.shown.step(step, done, values)

    def say(self, line: str) -> None:
        """Show a line and keep it."""
        self.shown.say(line)
        self.file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        self.file.flush()

    def close(self) -> None:
        """End the display."""
        self.shown.close()


def run(folder: Path, experiment: Experiment | None = None, data: Any = None, recorder: Any = None) -> record.Status:
    """Train the run of a folder, from its newest whole checkpoint where it has one.

    Args:
        experiment: the run already built and prepared by whoever made the folder; None reads the folder.
        data, recorder: stand in for the run's own (verify-resume watches through them).

    Returns:
        How it ended: `finished` or `preempted`.

    Raises:
        PlatformError: the status is `failed` then, and error.txt says why.
    """
    config = read_config(folder)
    use_plugins(config.get("plugins") or [])
    if experiment is None:
        experiment = Spec.of(config, "run").build()
    assert experiment is not None
    place = Place.find(experiment.trainer.build().accelerator, experiment.trainer["devices"])
    first = place.rank == 0
    screen = Kept(display() if first else Quiet(), folder / "log.txt") if first else None
    try:
        return _train(folder, config, experiment, place, screen, data, recorder)
    except BaseException as error:
        if first:
            _failed(folder, error)
        raise


def _train(
    folder: Path,
    config: dict[str, Any],
    experiment: Experiment,
    place: Place,
    screen: Kept | None,
    data: Any,
    recorder: Any,
) -> record.Status:
    if screen is not None:
        logging.getLogger("mlplatform").addHandler(_Say(screen))
    batches = experiment.prepare(place)
    checkpoint, notes = newest_whole(folder / "checkpoints")
    step = step_of(checkpoint) if checkpoint else 0
    task = experiment.task.build(model=experiment.build_model())
    shown, _ = masked(config)
    trackers = Recorders(metrics.Metrics(folder), [], print)
    if screen is not None:
        for line in notes:
            screen.say(line)
        metrics.cut(folder, step)
        sessions = [*record.read(folder).get("sessions", []), {"start": time.time(), "from_step": step}]
        record.update(folder, status="running", sessions=sessions, pid=os.getpid(), data=batches.record())
        parameters = sum(p.numel() for p in task.model.parameters())
        for line in banner(folder, parameters, shown, batches.record(), step):
            screen.say(line)
        if not (folder / "tokenizer").is_dir():
            experiment.tokens.save(folder / "tokenizer")
        trackers = Recorders(metrics.Metrics(folder), experiment.trackers(), screen.say)
        trackers.start(folder, _as_written(folder))
    try:
        result = fit(
            task,
            data(batches) if data else batches,
            trainer=experiment.trainer,
            optimizer=experiment.optimizer,
            schedule=experiment.schedule,
            strategy=experiment.strategy,
            seed=experiment.seed,
            folder=folder / "checkpoints",
            resume_from=checkpoint,
            recorder=recorder(trackers) if recorder else trackers,
            show=screen,
            extra=_hugging_face_config(task.model),
        )
    except BaseException:
        trackers.finish("failed")
        raise
    if screen is not None:
        _finished(folder, result, experiment, task.model, screen)
        trackers.finish(result.status)
    return result.status


def _finished(folder: Path, result: Result, experiment: Experiment, model: torch.nn.Module, screen: Kept) -> None:
    rows = metrics.read(folder)
    metrics.write_table(folder)
    best = {"step": result.best[0], "validation/loss": result.best[1]} if result.best else None
    sample = None
    if result.status == "finished" and getattr(getattr(model, "head", None), "task", "") == "causal_lm":
        sample = generate(
            model, experiment.tokens, experiment.prompt, max_new_tokens=SAMPLE_TOKENS, seed=experiment.seed
        )
        (folder / "samples").mkdir(exist_ok=True)
        (folder / "samples" / f"step={result.steps:08d}.txt").write_text(sample, encoding="utf-8")
    known = record.read(folder)
    known["sessions"][-1] |= {"end": time.time(), "to_step": result.steps, "status": result.status}
    final = record.update(
        folder,
        status=result.status,
        ended=time.time(),
        steps=result.steps,
        tokens=result.tokens,
        seconds=round(result.seconds, 3),
        best=best,
        metrics=metrics.last_values(rows),
        sessions=known["sessions"],
    )
    for line in summary(folder, final, sample):
        screen.say(line)


def _failed(folder: Path, error: BaseException) -> None:
    """Say in the record why a run ended; what can't be written any more (a full disk) is left."""
    try:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        (folder / "error.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        record.update(folder, status="failed", ended=time.time(), error=reason)
    except (OSError, PlatformError) as second:
        print(f"error: {folder}: the failure can't be recorded: {second}", file=sys.stderr)


def _as_written(folder: Path) -> dict[str, Any]:
    """Return the config as config.yaml has it: what trackers may see."""
    import yaml

    return yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))


def _hugging_face_config(model: Any) -> Any:
    """Return what writes config.json into each checkpoint, where the model's YAML can say one."""
    hf = model.spec.get("hf") or {}
    if "weights" not in hf and "parts" not in hf:
        return None
    text = json.dumps(config_json(model), indent=2) + "\n"
    return lambda checkpoint: (checkpoint / "config.json").write_text(text, encoding="utf-8")


class _Say(logging.Handler):
    """Sends warnings of the library to the run's screen and log."""

    def __init__(self, screen: Kept) -> None:
        super().__init__(logging.WARNING)
        self.screen = screen

    def emit(self, entry: logging.LogRecord) -> None:
        self.screen.say(entry.getMessage())


def main(argv: list[str]) -> int:
    """`python -m mlplatform.worker RUN_FOLDER`: exit code 0, 2 for a mistake of the user's."""
    try:
        if len(argv) != 1:
            raise RunError("python -m mlplatform.worker RUN_FOLDER: give the folder")
        run(Path(argv[0]))
    except PlatformError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code
    return 0
