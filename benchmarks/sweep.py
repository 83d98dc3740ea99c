"""What a sweep costs beside its trials: trials that do nothing, each in a process of its own.

python benchmarks/sweep.py [TRIALS] [AT_ONCE]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from mlplatform.registry import Spec
from mlplatform.runs.sweeps.space import Interval
from mlplatform.runs.sweeps.study import Outcome, Point, Study
from mlplatform.runs.sweeps.sweeping import work
from mlplatform.runs.sweeps.trial import Begun


def nothing(point: Point, begun: Begun) -> Outcome:
    """Return x squared."""
    return Outcome("finished", {"validation/loss": [float(point.values["x"]) ** 2]})


def main(trials: int = 1000, at_once: int = 2) -> None:
    """Print the milliseconds a trial takes at a sweep's begin, in all and at its end."""
    section = {"kind": "sweep", "search": {"kind": "random"}, "trials": trials}
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder), "sweep", Spec.of(section, "sweep").build(), {"x": Interval(-1.0, 1.0)}, 0)
        ends: list[float] = []
        work(study, nothing, at_once, lambda *_: ends.append(time.monotonic()))
    first = min(50, trials // 4)
    spans = {"the first": ends[first] - ends[0], "all": ends[-1] - ends[0], "the last": ends[-1] - ends[-1 - first]}
    counts = {"the first": first, "all": trials - 1, "the last": first}
    print(f"{trials} trials, {at_once} at once: milliseconds a trial")
    for name, seconds in spans.items():
        print(f"  {name:<10} {1000 * seconds / counts[name]:6.1f}")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
