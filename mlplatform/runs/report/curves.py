"""Curves thinned for a page: of the points that were logged, those that show its shape best are kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST, MOST, ALL = 80, 1000, 36_000
"""Points of a curve, and of all curves of a page together: some 10 bytes each, 400 kB."""
DIGITS = 5
APART = ("step", "time", "train/tokens")
"""What points stand over, and no curves."""
Floats = NDArray[np.float64]


def budget(curves: int) -> int:
    """Return how many points each of so many curves may have."""
    return min(MOST, max(LEAST, ALL // max(1, curves)))


def columns(rows: Sequence[dict[str, Any]], began: float | None = None) -> dict[str, tuple[Floats, Floats]]:
    """Return each metric's (steps, values) of a run's rows, with the seconds since its first and its tokens.

    Args:
        began: the time of the first row, where it is not among these.
    """
    points: dict[str, tuple[list[float], list[float]]] = {}
    if began is None and rows:
        began = rows[0].get("time")
    for row in rows:
        for name, value in row.items():
            if name == "time" and began is not None:
                value -= began
            if name != "step" and isinstance(value, int | float):
                steps, values = points.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    return {name: (np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in points.items()}


def thinned(x: Floats, y: Floats, most: int) -> tuple[Floats, Floats]:
    """Return at most so many points: in each of equal stretches, the one that spans the largest triangle.

    The triangle's other corners are the point taken before and the mean of the next stretch; the first and the last
    point always stay (S. Steinarsson, Downsampling Time Series for Visual Representation, 2013).
    """
    if len(x) <= most:
        return x, y
    edges = np.linspace(1, len(x) - 1, most - 1).astype(int)
    means = [(x[a:b].mean(), y[a:b].mean()) for a, b in pairwise(edges[1:])] + [(x[-1], y[-1])]
    taken = [0]
    for start, end, (far_x, far_y) in zip(edges[:-1], edges[1:], means, strict=True):
        near = taken[-1]
        areas = (x[near] - far_x) * (y[start:end] - y[near]) - (x[near] - x[start:end]) * (far_y - y[near])
        taken.append(start + int(np.abs(areas).argmax()))
    chosen = np.asarray([*taken, len(x) - 1])
    return x[chosen], y[chosen]


def packed(x: Floats, y: Floats, most: int) -> dict[str, list[float]]:
    """Return a curve for the page: steps as differences, values to five digits, which is less than a pixel."""
    x, y = thinned(x, y, most)
    steps = np.diff(x, prepend=0.0)
    return {"x": [int(step) for step in steps], "y": [short(value) for value in y.tolist()]}


def short(value: float) -> float | int:
    """Return a number whose text is short."""
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e9 else rounded
