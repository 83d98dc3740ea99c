"""TensorBoard's event files, in the run folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from mlplatform.registry import block
from mlplatform.runs import metrics
from mlplatform.runs.trackers.tracker import need


@block("logger/tensorboard")
class TensorBoard:
    """Curves in the run folder's `tensorboard/`: `tensorboard --logdir outputs` shows them."""

    def __init__(self) -> None:
        need("tensorboard", "tensorboard")
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

    def finish(self, status: str, error: str | None) -> None:
        """Close the file."""
        self.writer.close()

    def _add(self, step: int, values: dict[str, float], time: float | None) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step, walltime=time)
