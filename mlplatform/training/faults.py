"""Steps that go wrong: what is done about a loss that is not finite, and which losses are out of the ordinary."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mlplatform.errors import RunError
from mlplatform.registry import Positive, block

ADVICE = "lower optimizer.lr, lengthen the warmup or set trainer.clip_norm"
WINDOW, LEAST, LIMIT, RATIO_LIMIT = 64, 32, 8.0, 5.0
"""Of how many steps a loss is compared with the median, how many there must be, and how many deviations are a spike: of
the losses, and of their logarithms too."""


class Fault(NamedTuple):
    """What happened at a step, and what was done about it, in words."""

    step: int
    kind: str
    what: str


class Policy(Protocol):
    """What is done about a step whose loss or gradient is not finite. All ranks see the same, so they do the same."""

    def meet(self, told: str) -> None:
        """Raise RunError to end the run, or return: the step then leaves the weights as they are."""
        ...

    def mend(self, told: str, go_back: Callable[[], Path | None]) -> tuple[str, str]:
        """Do what is to be done after the step; return its kind and words for it."""
        ...

    def well(self) -> None:
        """A step went well."""
        ...


@block("bad_loss/stop")
class Stop:
    """End the run; it can be resumed from its last checkpoint with other settings."""

    def __init__(self) -> None:
        pass

    def meet(self, told: str) -> None:
        """Raise RunError."""
        raise RunError(f"{told}; {ADVICE}")

    def mend(self, told: str, go_back: Callable[[], Path | None]) -> tuple[str, str]:
        """Never come to."""
        raise NotImplementedError

    def well(self) -> None:
        """Nothing to remember."""


@block("bad_loss/skip")
class Skip:
    """Leave the weights and the optimizer as they are and go on with the next batch.

    Args:
        most: steps in a row that are skipped before the run ends.
    """

    def __init__(self, *, most: Positive = 5) -> None:
        self.most, self.row = most, 0

    def meet(self, told: str) -> None:
        """Count; raise RunError when there were too many in a row."""
        self.row += 1
        if self.row > self.most:
            raise RunError(f"{told}, after {self.most} steps in a row that were skipped; {ADVICE}")

    def mend(self, told: str, go_back: Callable[[], Path | None]) -> tuple[str, str]:
        """Nothing is to be done."""
        return "skipped", "the step is skipped"

    def well(self) -> None:
        """Begin to count anew."""
        self.row = 0


@block("bad_loss/roll_back")
class RollBack:
    """Go back to the weights, the optimizer and the averages of the last checkpoint, and on with the next batch.

    The steps and the data between are passed by: the clock, the schedule and the order of samples go on.

    Args:
        most: times one checkpoint is gone back to before the run ends.
    """

    def __init__(self, *, most: Positive = 3) -> None:
        self.most, self.times, self.last = most, 0, ""

    def meet(self, told: str) -> None:
        """Nothing to refuse yet."""

    def mend(self, told: str, go_back: Callable[[], Path | None]) -> tuple[str, str]:
        """Go back. Raises RunError when there is nothing to go back to, or it was gone back to too often."""
        path = go_back()
        if path is None:
            raise RunError(f"{told}, and there is no checkpoint to go back to; {ADVICE}")
        self.times = self.times + 1 if path.name == self.last else 1
        self.last = path.name
        if self.times > self.most:
            raise RunError(f"{told}, after going back to {path.name} {self.most} times; {ADVICE}")
        return "rolled_back", f"back to the weights of {path.name}"

    def well(self) -> None:
        """A later checkpoint says that it went well."""


def _above(loss: float, losses: Sequence[float]) -> float:
    """Return how many deviations a loss is above the median."""
    middle = statistics.median(losses)
    spread = 1.4826 * statistics.median(abs(other - middle) for other in losses)
    return (loss - middle) / max(spread, 1e-3 * abs(middle), 1e-9)


def _above_in_ratio(loss: float, losses: Sequence[float]) -> float:
    """Return the same of logarithms: losses near nothing (a classifier that is nearly always right) differ by factors.

    Where a loss is below zero there are none, and it is no objection.
    """
    if min(loss, *losses) <= 0:
        return math.inf
    return _above(math.log(loss), [math.log(other) for other in losses])


class Faults:
    """The faults of a run: counts them, has the policy answer them, and tells of them.

    Args:
        policy: what is done about a loss that is not finite.
        tell: gets each fault, with how many of its kind there were.
    """

    def __init__(self, policy: Policy, tell: Callable[[Fault, int], None]) -> None:
        self.policy, self.tell = policy, tell
        self.counts: dict[str, int] = {}
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.bad: str | None = None

    def meet(self, step: int, what: str) -> None:
        """The task found a step's loss or gradient not to be finite. Raises RunError to end the run."""
        self.policy.meet(f"step {step}: {what}")
        self.bad = what

    def settle(self, step: int, loss: float, go_back: Callable[[], Path | None]) -> bool:
        """End a step; return whether it went well.

        Args:
            go_back: puts the last whole checkpoint's weights in place and returns it; None when there is none.
        """
        what, self.bad = self.bad, None
        if what is None:
            self.policy.well()
            self._compare(step, loss)
            return True
        kind, done = self.policy.mend(f"step {step}: {what}", go_back)
        self._tell(Fault(step, kind, f"{what}: {done}"))
        return False

    def _compare(self, step: int, loss: float) -> None:
        """Tell of a loss that is far above those of the last steps, in deviations that outliers do not widen."""
        if len(self.losses) >= LEAST:
            middle = statistics.median(self.losses)
            above = _above(loss, self.losses)
            if above > LIMIT and _above_in_ratio(loss, self.losses) > RATIO_LIMIT:
                told = f"the loss spikes: {loss:.4f} is {above:.0f} deviations above the median {middle:.4f}"
                self._tell(Fault(step, "spikes", f"{told} of the last {len(self.losses)} steps"))
        self.losses.append(loss)

    def _tell(self, fault: Fault) -> None:
        self.counts[fault.kind] = self.counts.get(fault.kind, 0) + 1
        self.tell(fault, self.counts[fault.kind])

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and the last losses."""
        return {"counts": dict(self.counts), "losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from them."""
        self.counts, self.losses = dict(state["counts"]), deque(state["losses"], maxlen=WINDOW)
