"""Runs that differ in their seed alone are one group: its mean, and how sure the mean is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

APART = ("seed", "outputs", "experiment")
"""Keys of a config in which runs of one group may differ."""
CONFIDENCE = 0.95


class Mean(NamedTuple):
    """The mean of some values, and the half-width of its confidence interval; None of a single value."""

    value: float
    half: float | None
    count: int


def mean(values: Sequence[float], confidence: float = CONFIDENCE) -> Mean:
    """Return the mean of values with Student's interval: t(n - 1) s / sqrt(n)."""
    count, middle = len(values), math.fsum(values) / len(values)
    if count < 2:
        return Mean(middle, None, count)
    spread = math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (count - 1))
    return Mean(middle, student_quantile(0.5 + confidence / 2, count - 1) * spread / math.sqrt(count), count)


def groups(configs: Sequence[dict[str, Any]]) -> list[int]:
    """Return for each config (its leaves) the number of its group; groups are numbered as they come."""
    first, nothing = (configs or [{}])[0], object()
    keys = sorted(
        {
            key
            for config in configs
            for key, value in config.items()
            if value != (one := first.get(key, nothing)) or type(value) is not type(one)
        }
        | {key for config in configs if len(config) != len(first) for key in first.keys() - config.keys()}
    )
    apart = [key for key in keys if key not in APART and not key.startswith("logger")]
    seen: dict[tuple[str, ...], int] = {}
    return [seen.setdefault(tuple(repr(c.get(key, nothing)) for key in apart), len(seen)) for c in configs]


def student_quantile(share: float, freedom: int) -> float:
    """Return what a variable of Student's t stays below with this probability, at least one half."""
    low, high = 0.0, 2.0
    while student_cdf(high, freedom) < share:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def student_cdf(t: float, freedom: int) -> float:
    """Return the probability that Student's t is at most t >= 0: finite sums in the angle (Abramowitz, Stegun 26.7)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    if freedom == 1:
        return 0.5 + angle / math.pi
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for n in range(2 + odd, freedom, 2):
        term *= cosine**2 * (n - 1) / n
        total += term
    return 0.5 + ((angle + sine * total) / math.pi if odd else sine * total / 2)
