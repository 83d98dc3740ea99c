"""What a set of runs says about its settings: which matter, and how the best result came about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEAST_RUNS = 3
"""Fewer say nothing of a setting."""


def importance(values: Sequence[Any], results: Floats) -> float:
    """Return the share of the variance of the results' ranks that one setting explains alone, from 0 to 1.

    For numbers it is the square of Spearman's correlation; for anything else epsilon squared, the share between groups
    less what groups of that size would show by chance. Settings that act only together are not told.
    """
    ranked = ranks(results)
    if np.ptp(ranked) == 0:
        return 0.0
    if all(is_number(value) for value in values):
        own = ranks(np.asarray(values, float))
        return 0.0 if np.ptp(own) == 0 else float(np.corrcoef(own, ranked)[0, 1] ** 2)
    names = [str(value) for value in values]
    parts = [ranked[[name == one for name in names]] for one in sorted(set(names))]
    within = sum(float(((part - part.mean()) ** 2).sum()) for part in parts)
    whole = float(((ranked - ranked.mean()) ** 2).sum())
    free = len(ranked) - len(parts)
    if free <= 0:
        return 0.0
    return max(0.0, (whole - within - (len(parts) - 1) * within / free) / whole)


def ranks(values: Floats) -> Floats:
    """Return the rank of each value, equal ones sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + 1 + last) / 2)[inverse]


def is_number(value: Any) -> bool:
    """Whether a setting is a number (True is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def best_so_far(results: Sequence[float], higher: bool) -> list[float]:
    """Return the best of the first 1, 2, ... results."""
    return np.asarray((np.maximum if higher else np.minimum).accumulate(np.asarray(results, float))).tolist()


def spread(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return (the place of each value on an axis from 0 to 1, its ticks with their places).

    Numbers over more than two tens stand by their logarithm; what is no number stands evenly, in order of name.
    """
    if all(is_number(value) for value in values):
        numbers = np.asarray(values, float)
        if numbers.min() > 0 and numbers.max() / numbers.min() >= 20:
            numbers = np.log(numbers)
        low, high = numbers.min(), numbers.max()
        places = np.full(len(numbers), 0.5) if low == high else (numbers - low) / (high - low)
        ticks = dict(sorted(zip(places.tolist(), values, strict=True)))
        if len(ticks) > 6:
            ticks = {place: ticks[place] for place in (min(ticks), max(ticks))}
        return places.tolist(), [(place, f"{value:.4g}") for place, value in ticks.items()]
    names = sorted({str(value) for value in values})
    at = {name: number / max(1, len(names) - 1) for number, name in enumerate(names)}
    return [at[str(value)] for value in values], [(place, name[:14]) for name, place in at.items()]
