"""Drawings of a sweep as SVG: they need no script, print as they are, and take their colours from the page."""

from __future__ import annotations

from typing import Any, NamedTuple

from mlplatform.runs.report.sweep import spread

WIDTH, HEIGHT, TOP, SIDE, FOOT = 720, 260, 44, 70, 14
LINES = 400
"""Runs drawn as lines; of more, every so many-th by rank."""
POINTS = 1000
"""Runs drawn as points; of more, every so many-th as they began."""


class Axis(NamedTuple):
    """One axis: its name, its place from the left, and its ticks."""

    name: str
    x: float
    ticks: list[tuple[float, str]]


def parallel(told: dict[str, Any], metric: str, higher: bool) -> dict[str, Any]:
    """Return the axes and lines of parallel coordinates; the last axis is the result.

    A line's `rank` goes from 0, the best result, to 1.
    """
    columns = [(axis["name"], axis["values"]) for axis in reversed(told["axes"])] + [(metric, told["results"])]
    step = (WIDTH - 2 * SIDE) / (len(columns) - 1)
    axes, places = [], []
    for number, (name, values) in enumerate(columns):
        at, ticks = spread(values)
        if number == len(columns) - 1 and len(ticks) > 2:
            ticks = [ticks[0], ticks[-1]]
        axes.append(Axis(name, round(SIDE + number * step, 1), [(round(_y(p), 1), text) for p, text in ticks]))
        places.append([_y(place) for place in at])
    order = sorted(range(len(told["results"])), key=lambda n: told["results"][n], reverse=higher)
    every = -(-len(order) // LINES)
    lines = []
    for rank, run in list(enumerate(order))[::every]:
        path = " ".join(f"{axis.x},{column[run]:.1f}" for axis, column in zip(axes, places, strict=True))
        lines.append({"path": path, "rank": round(rank / max(1, len(order) - 1), 3), "run": told["runs"][run]})
    return {"axes": axes, "lines": lines[::-1], "width": WIDTH, "height": HEIGHT, "top": TOP, "bottom": HEIGHT - FOOT}


def progress(told: dict[str, Any]) -> dict[str, Any]:
    """Return the results in the order of the runs as points, and the best so far as a line of steps."""
    results, best = told["results"], told["best"]
    low, high = min(results), max(results)
    room = WIDTH - 2 * SIDE

    def at(number: int, value: float) -> tuple[float, float]:
        share = 0.5 if high == low else (value - low) / (high - low)
        return round(SIDE + room * (number + 0.5) / len(results), 1), round(_y(share), 1)

    every = -(-len(results) // POINTS)
    points = [(*at(number, value), value) for number, value in enumerate(results) if number % every == 0]
    steps: list[str] = []
    for number, value in enumerate(best):
        if number and value == best[number - 1] and number < len(best) - 1:
            continue
        x, y = at(number, value)
        steps += [f"{x},{steps[-1].partition(',')[2]}"] if steps else []
        steps.append(f"{x},{y}")
    ticks = [(round(_y(0.0), 1), f"{low:.4g}"), (round(_y(1.0), 1), f"{high:.4g}")] if high > low else []
    frame = {"width": WIDTH, "height": HEIGHT, "left": SIDE, "right": WIDTH - SIDE, "bottom": HEIGHT - FOOT}
    return {"points": points, "every": every, "path": " ".join(steps), "ticks": ticks, **frame}


def _y(share: float) -> float:
    return HEIGHT - FOOT - share * (HEIGHT - FOOT - TOP)
