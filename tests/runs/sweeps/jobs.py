"""What tests try points by: functions other processes can be told of."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from tiny_runs import composed

from mlplatform.registry import Spec
from mlplatform.runs.sweeps.space import Space
from mlplatform.runs.sweeps.study import Outcome, Point, Study
from mlplatform.runs.sweeps.sweep import Sweep
from mlplatform.runs.sweeps.trial import Begun

LOSS = "validation/loss"


def study(folder: Path, space: Space, seed: int = 0, **fields: Any) -> Study:
    """Open the study of a sweep with those fields."""
    data = {"kind": "sweep", "search": {"kind": "grid"}, **fields}
    folder.mkdir(exist_ok=True)
    made: Sweep = Spec.of(data, "sweep", "sweep").build()
    return Study(folder, "sweep", made, space, seed)


def bowl(point: Point, begun: Begun = print) -> Outcome:
    """Return (x - 3)^2, and fail, crash or die where x says so."""
    x = point.values["x"]
    if x == "fails":
        raise ValueError("x can't be that")
    if x == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome("finished", {LOSS: [(float(x) - 3) ** 2]}, (f"run-{x}",))


def slow(point: Point, begun: Begun = print) -> Outcome:
    """Take a second."""
    time.sleep(1)
    return bowl(point)


def small(folder: str, more: list[str]) -> tuple[dict[str, Any], set[str]]:
    """Compose a small real run."""
    result = composed(folder, *more)
    return result.config, result.from_environment
