"""Learning-rate schedules: what the peak rate is multiplied by, as a function of how much of the run is done.

Each starts with a linear warmup. Progress is measured in the unit of `trainer.max`, so a run of `2B tokens` decays
by tokens. During warmup a step counts as done, so that the first step already learns; afterwards the progress before
the step counts, so that the last step still does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from mlplatform.errors import SpecError
from mlplatform.registry import Fraction, Interval, block
from mlplatform.training.intervals import Length

Factor = Callable[[float, float], float]
"""(progress before the step, progress after it) -> factor on the peak learning rate."""


class Schedule:
    """Warmup, then `decay`. Subclasses say how the rest of the run goes."""

    def __init__(self, warmup: str) -> None:
        self.warmup = Length.parse(warmup)

    def bind(self, whole: Length, steps_per_epoch: float) -> Factor:
        """Return the factor as a function of progress in the unit of the whole run.

        Raises:
            SpecError: the parts are longer than the run, or in another unit.
        """
        total, warm = whole.amount, self.warmup.within(whole, steps_per_epoch, "schedule.warmup")
        tail = self.tail(whole, steps_per_epoch)
        if warm + tail > total:
            parts = f"'{self.warmup.text}'" + (" and schedule.decay together" if tail else "")
            told = f"{parts} would last longer than trainer.max='{whole.text}'; shorten it"
            raise SpecError(problems=[("schedule.warmup", told)])

        def factor(begin: float, end: float) -> float:
            if end <= warm:
                return end / warm
            if warm >= total:
                return 1.0
            return self.decay(min(max(begin - warm, 0) / (total - warm), 1.0), tail / (total - warm))

        return factor

    def tail(self, whole: Length, steps_per_epoch: float) -> float:
        """Return how long the last part is, in the unit of the run, for schedules that have one."""
        return 0.0

    def decay(self, done: float, tail: float) -> float:
        """Return the factor after warmup; `done` runs from 0 to 1, and the last part is `tail` of it."""
        raise NotImplementedError


@block("schedule/constant")
class Constant(Schedule):
    """The peak rate to the end."""

    def __init__(self, *, warmup: Interval = "0%") -> None:
        super().__init__(warmup)

    def decay(self, done: float, tail: float) -> float:
        return 1.0


@block("schedule/cosine")
class Cosine(Schedule):
    """floor + (1 - floor) * (1 + cos(pi * done)) / 2. arXiv:1608.03983

    Args:
        floor: share of the peak rate at the end.
    """

    def __init__(self, *, warmup: Interval = "2%", floor: Fraction = 0.1) -> None:
        super().__init__(warmup)
        self.floor = floor

    def decay(self, done: float, tail: float) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2


@block("schedule/linear")
class Linear(Schedule):
    """A straight line from the peak rate to the floor.

    Args:
        floor: share of the peak rate at the end.
    """

    def __init__(self, *, warmup: Interval = "2%", floor: Fraction = 0.0) -> None:
        super().__init__(warmup)
        self.floor = floor

    def decay(self, done: float, tail: float) -> float:
        return 1 - (1 - self.floor) * done


@block("schedule/wsd")
class WarmupStableDecay(Schedule):
    """Warmup, the peak rate for most of the run, then a decay. arXiv:2404.06395; `1-sqrt`: arXiv:2405.18392

    Args:
        decay: how long the last part is.
        shape: of the decay: with d its share done, 1 - d or 1 - sqrt(d), above the floor.
        floor: share of the peak rate at the end.
    """

    def __init__(
        self,
        *,
        warmup: Interval = "2%",
        decay: Interval = "20%",
        shape: Literal["linear", "1-sqrt"] = "linear",
        floor: Fraction = 0.0,
    ) -> None:
        super().__init__(warmup)
        self.last, self.shape, self.floor = Length.parse(decay), shape, floor

    def tail(self, whole: Length, steps_per_epoch: float) -> float:
        return self.last.within(whole, steps_per_epoch, "schedule.decay")

    def decay(self, done: float, tail: float) -> float:
        if done < 1 - tail or tail == 0:
            return 1.0
        inside = (done - (1 - tail)) / tail
        return 1 - (1 - self.floor) * (inside if self.shape == "linear" else math.sqrt(inside))
