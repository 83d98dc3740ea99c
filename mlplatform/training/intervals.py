"""Lengths of training with a unit: `500 steps`, `2B tokens`, `30 min`, `1 epochs`, `2%`; and the clock of a run."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from mlplatform.errors import SpecError, did_you_mean

UNITS = {
    **dict.fromkeys(("step", "steps"), ("steps", 1)),
    **dict.fromkeys(("token", "tokens"), ("tokens", 1)),
    **dict.fromkeys(("epoch", "epochs"), ("epochs", 1)),
    **dict.fromkeys(("s", "sec", "second", "seconds"), ("seconds", 1)),
    **dict.fromkeys(("min", "minute", "minutes"), ("seconds", 60)),
    **dict.fromkeys(("h", "hour", "hours"), ("seconds", 3600)),
    "%": ("%", 1),
}
MULTIPLIERS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
EXAMPLES = "'500 steps', '2B tokens', '30 min', '1 epochs' or '2%'"
WRITTEN = re.compile(r"\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<multiplier>[KMBT]?)\s*(?P<unit>[A-Za-z%]*)\s*")


@dataclass
class Clock:
    """What a run has done so far: optimizer steps, tokens of all ranks, seconds of training over all its sessions."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def read(self, unit: str) -> float:
        """Return the reading in `steps`, `tokens` or `seconds`."""
        return getattr(self, unit)

    def state_dict(self) -> dict[str, Any]:
        """Return the readings, to be saved."""
        return asdict(self)


@dataclass(frozen=True)
class Length:
    """A parsed interval. `text` is what the user wrote; the amount of steps and tokens is a whole number."""

    amount: float
    unit: str
    text: str

    @classmethod
    def parse(cls, text: str) -> Length:
        """Read `500 steps` and its like. Raises SpecError with one line that says what is wrong."""
        found = WRITTEN.fullmatch(text)
        if found is None:
            raise SpecError(f"'{text}' is no length of training; write it as {EXAMPLES}")
        unit = found["unit"]
        if not unit:
            raise SpecError(f"'{text}' has no unit; write it as {EXAMPLES}")
        if unit not in UNITS:
            raise SpecError(f"'{text}': no unit '{unit}'{did_you_mean(unit, UNITS)}; write it as {EXAMPLES}")
        name, size = UNITS[unit]
        amount = Fraction(found["number"]) * MULTIPLIERS[found["multiplier"]] * size
        if name in ("steps", "tokens") and amount.denominator != 1:
            raise SpecError(f"'{text}' is not a whole number of {name}")
        return cls(int(amount) if amount.denominator == 1 else float(amount), name, text.strip())

    def resolve(self, steps_per_epoch: float, whole: Length | None = None) -> Length:
        """Return the same length in steps, tokens or seconds.

        Args:
            steps_per_epoch: optimizer steps that pass over the data once; need not be whole. Epochs are rounded up.
            whole: what a percentage is of.

        Raises:
            SpecError: a percentage where there is nothing to take it of.
        """
        if self.unit == "epochs":
            return Length(max(1, math.ceil(self.amount * steps_per_epoch)), "steps", self.text)
        if self.unit == "%":
            if whole is None:
                raise SpecError(f"'{self.text}' of what? Here a length needs steps, tokens, epochs or time")
            amount = whole.amount * self.amount / 100
            return Length(amount if whole.unit == "seconds" else round(amount), whole.unit, self.text)
        return self

    def within(self, whole: Length, steps_per_epoch: float, name: str) -> float:
        """Return this length in the unit of the whole run, for a part of a schedule.

        Raises:
            SpecError: another unit than the run's; `name` says which field.
        """
        part = self.resolve(steps_per_epoch, whole)
        if part.unit != whole.unit:
            told = f"'{self.text}' is in {part.unit} and trainer.max='{whole.text}' in {whole.unit}"
            raise SpecError(problems=[(name, f"{told}; write it in {whole.unit} or in %")])
        return part.amount

    def reached(self, clock: Clock) -> bool:
        """Whether the clock has come this far."""
        return clock.read(self.unit) >= self.amount

    def passed(self, before: Clock, now: Clock) -> bool:
        """Whether a multiple of this length lies after `before` and not after `now`."""
        return now.read(self.unit) // self.amount > before.read(self.unit) // self.amount


def every(text: str | None, steps_per_epoch: float, whole: Length, name: str) -> Length | None:
    """Read a field that says how often something happens; None stays None.

    Raises:
        SpecError: no length, or one of nothing.
    """
    if text is None:
        return None
    said = Length.parse(text)
    length = said.resolve(steps_per_epoch, whole)
    if said.unit == "%" and said.amount > 0 and whole.unit == "steps":  # a share of a short run is a step at least
        length = Length(max(1, length.amount), "steps", text)
    if length.amount <= 0:
        raise SpecError(problems=[(name, f"'{text}' must be more than nothing; write {name}=null for never")])
    return length
