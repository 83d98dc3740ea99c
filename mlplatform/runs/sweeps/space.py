"""What a sweep varies: axes of listed values, or intervals of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from mlplatform.errors import SpecError, listing


@dataclass(frozen=True)
class Values:
    """Values to choose from, each as its override says it: `gpt2`, `1e-3`, `[1,2]`."""

    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{{{', '.join(self.values)}}}"

    def distribution(self) -> Any:
        """Return Optuna's distribution."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def ends(self) -> Sequence[str]:
        """Return the values to check before anything runs: all of them."""
        return self.values


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included; `log` draws their logarithms evenly, `whole` rounds."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}]{' log' if self.log else ''}{' whole' if self.whole else ''}"

    def distribution(self) -> Any:
        """Return Optuna's distribution."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def ends(self) -> Sequence[str]:
        """Return the values to check before anything runs: both ends."""
        return [f"{int(end) if self.whole else end}" for end in (self.low, self.high)]


Axis = Values | Interval
Space = Mapping[str, Axis]
"""Override key -> what it takes."""


def written(space: Space) -> dict[str, Any]:
    """Return a space as JSON has it."""
    return {key: asdict(axis) for key, axis in space.items()}


def read(data: Mapping[str, Any]) -> dict[str, Axis]:
    """The reverse of `written`."""
    return {key: Values(tuple(axis["values"])) if "values" in axis else Interval(**axis) for key, axis in data.items()}


def grid(space: Space) -> list[dict[str, str]]:
    """Return every point of a space, the last axis changing fastest.

    Raises:
        SpecError: an axis is an interval.
    """
    if between := [key for key, axis in space.items() if isinstance(axis, Interval)]:
        told = f"{listing(between)} is an interval, and a grid needs values: list them, write range(...)"
        raise SpecError(problems=[("sweep.search", f"{told}, or choose sweep=random or sweep=tpe")])
    axes = [axis.values for axis in space.values() if isinstance(axis, Values)]
    return [dict(zip(space, values, strict=True)) for values in product(*axes)]


def differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    """Return a line for each axis in which two written spaces differ."""
    held, asked = read(one), read(two)
    return [
        f"{key}: {held.get(key, 'not there')} before, {asked.get(key, 'not there')} now"
        for key in {**held, **asked}
        if held.get(key) != asked.get(key)
    ]
