"""Where metrics go beside metrics.jsonl: TensorBoard, Weights & Biases. A tracker's trouble never stops a run."""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import yaml

from mlplatform.errors import SpecError
from mlplatform.registry import Spec, Text, block
from mlplatform.runs import metrics, record
from mlplatform.training.trainable import Recorder

log = logging.getLogger(__name__)
SECONDS_TO_CONNECT, SECONDS_TO_END = 30, 60


class Tracker(Protocol):
    """One place metrics go to."""

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Begin, or go on with, the run of a folder, whose metrics.jsonl ends where the run goes on.

        The config has its secrets masked.
        """
        ...

    def log(self, step: int, values: dict[str, float]) -> None:
        """Keep the metrics of a step."""
        ...

    def finish(self, status: str) -> None:
        """Say how the run ended."""
        ...


@block("logger/tensorboard")
class TensorBoard:
    """Curves in the run folder's `tensorboard/`: `tensorboard --logdir outputs` shows them."""

    def __init__(self) -> None:
        _need("tensorboard", "tensorboard")
        self.writer: Any = None

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Write the curves anew from metrics.jsonl: events may be lost with a killed run, and its last were cut."""
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self.writer = SummaryWriter(str(folder / "tensorboard"))
        self.writer.add_text("config", "```yaml\n" + yaml.safe_dump(config, sort_keys=False) + "```")
        for row in metrics.read(folder):
            values = {name: value for name, value in row.items() if name not in ("step", "time") and value is not None}
            self._add(row["step"], values, row["time"])

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add a point to each curve."""
        self._add(step, values, None)

    def finish(self, status: str) -> None:
        """Close the file."""
        self.writer.close()

    def _add(self, step: int, values: dict[str, float], time: float | None) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step, walltime=time)


@block("logger/wandb")
class WandB:
    """Weights & Biases: config and curves; a resumed run goes on as the same one.

    A run that can't reach W&B is written offline, for `wandb sync` later.

    Args:
        mode: `offline` writes `wandb/offline-run-*` into the run folder; `online` sends; null does as WANDB_MODE says,
            or sends.
        name: null for the run's own id.
    """

    def __init__(
        self,
        *,
        project: Text = "mlplatform",
        entity: Text | None = None,
        name: Text | None = None,
        group: Text | None = None,
        tags: list[Text] | None = None,
        mode: Literal["online", "offline"] | None = None,
    ) -> None:
        _need("wandb", "wandb")
        self.options = {"project": project, "entity": entity, "group": group, "tags": tags}
        self.name, self.mode = name, mode or os.environ.get("WANDB_MODE") or "online"
        self.run: Any = None

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Begin the run, or go on with it under the same id."""
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")  # the run says where it is; W&B adds nothing
        known = record.read(folder)
        identity = known.get("wandb_id") or secrets.token_hex(4)
        record.update(folder, wandb_id=identity)
        settings = wandb.Settings(
            console="off",
            save_code=False,
            disable_git=True,
            x_disable_meta=True,  # it holds the command line
            silent=True,
            init_timeout=SECONDS_TO_CONNECT,
            finish_timeout=SECONDS_TO_END,
        )

        def begin(mode: Any) -> Any:
            if mode == "online" and not wandb.login(prompt=False, verify=False):
                raise RuntimeError("no API key: set WANDB_API_KEY or run `wandb login`")
            name = self.name or known["id"]
            options = {**self.options, "name": name, "id": identity, "dir": str(folder), "settings": settings}
            return wandb.init(mode=mode, resume="allow", **options)

        try:
            self.run = begin(self.mode)
        except Exception as error:
            if self.mode == "offline":
                raise
            told = " ".join(str(error).split())[:160]
            log.warning("W&B: %s; writing offline, send it later: wandb sync %s/wandb/offline-run-*", told, folder)
            wandb.teardown()  # the failed run would hold on to its id
            self.run = begin("offline")
        self.run.config.update(config, allow_val_change=True)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Add a point to each curve. W&B drops the steps it has: those that a resumed run does again."""
        self.run.log(values, step=step)

    def finish(self, status: str) -> None:
        """End the run; a preempted one may go on."""
        self.run.summary["status"] = status
        self.run.finish(exit_code=0 if status in ("finished", "preempted") else 1)


@block("logger/several")
def several(*, loggers: list[Annotated[Spec, "logger"]]) -> list[Tracker]:
    """Several trackers at once."""
    return [tracker for logger in loggers for tracker in trackers(logger)]


class Foreign:
    """A logger of Lightning's, named by `_target_`, as a tracker."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Give it the config."""
        self.logger.log_hyperparams(config)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Give it the metrics of a step."""
        self.logger.log_metrics(values, step)

    def finish(self, status: str) -> None:
        """Have it write what it still holds."""
        self.logger.save()
        self.logger.finalize("failed" if status == "failed" else "success")


def trackers(logger: Spec | None) -> list[Tracker]:
    """Return what a run's `logger` names. Raises SpecError when a package is not installed."""
    built = logger.build() if logger else []
    each = built if isinstance(built, list) else [built]
    return [one if hasattr(one, "start") else Foreign(one) for one in each]


class Recorders:
    """Sends metrics to the run's own file first, then to every tracker that still works."""

    def __init__(self, own: Recorder, trackers: list[Tracker], say: Callable[[str], None]) -> None:
        self.own, self.trackers, self.say = own, list(trackers), say

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Start every tracker."""
        self._each(lambda tracker: tracker.start(folder, config))

    def log(self, step: int, values: dict[str, float]) -> None:
        """Keep the metrics of a step."""
        self.own.log(step, values)
        self._each(lambda tracker: tracker.log(step, values))

    def finish(self, status: str) -> None:
        """End every tracker."""
        self._each(lambda tracker: tracker.finish(status))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for tracker in list(self.trackers):
            try:
                act(tracker)
            except Exception as error:  # whatever a tracker raises, the run goes on and its own record is whole
                self.trackers.remove(tracker)
                told = " ".join(str(error).split())[:200]
                self.say(f"{type(tracker).__name__}: {told}; training goes on, metrics.jsonl has everything")
                log.debug("tracker failed", exc_info=True)


def _need(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise SpecError(f'this logger needs the "{extra}" extra:  pip install "mlplatform[{extra}]"') from None
