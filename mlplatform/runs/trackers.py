"""Where metrics go beside metrics.jsonl: TensorBoard, Weights & Biases. A tracker's trouble never stops a run."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from mlplatform.errors import SpecError
from mlplatform.registry import Spec, Text, block
from mlplatform.runs import record
from mlplatform.training.trainable import Recorder

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """One place metrics go to."""

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Begin, or go on with, the run of a folder. The config has its secrets masked."""
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
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))
        import yaml

        self.writer.add_text("config", "```yaml\n" + yaml.safe_dump(config, sort_keys=False) + "```")

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, status: str) -> None:
        self.writer.close()


@block("logger/wandb")
class WandB:
    """Weights & Biases: config and curves; a resumed run goes on as the same one.

    Args:
        mode: `offline` writes `wandb/offline-run-*` into the run folder, for `wandb sync`; `online` sends.
        name: null for the run's own id.
    """

    def __init__(
        self,
        *,
        project: Text = "mlplatform",
        entity: Text | None = None,
        name: Text | None = None,
        group: Text | None = None,
        tags: list[str] | None = None,
        mode: Literal["online", "offline"] = "online",
    ) -> None:
        _need("wandb", "wandb")
        self.options = {"project": project, "entity": entity, "group": group, "tags": tags, "mode": mode}
        self.name = name
        self.run: Any = None

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        import wandb

        known = record.read(folder)
        identity = known.get("wandb_id") or wandb.util.generate_id()
        record.update(folder, wandb_id=identity)
        self.run = wandb.init(
            **self.options,
            name=self.name or known["id"],
            id=identity,
            dir=str(folder),
            config=config,
            resume="allow",
            settings=wandb.Settings(console="off", save_code=False, disable_git=True, x_disable_meta=True, quiet=True),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def finish(self, status: str) -> None:
        self.run.summary["status"] = status
        self.run.finish(exit_code=0 if status in ("finished", "preempted") else 1, quiet=True)


@block("logger/several")
def several(*, loggers: list[Annotated[Spec, "logger"]]) -> list[Tracker]:
    """Several trackers at once."""
    return [logger.build() for logger in loggers]


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
    try:
        importlib.import_module(module)
    except ImportError:
        raise SpecError(f'this logger needs the "{extra}" extra:  pip install "mlplatform[{extra}]"') from None
