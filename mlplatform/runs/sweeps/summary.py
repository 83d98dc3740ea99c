"""What a sweep says: a line for each point, and at the end the best, the failed, and how sure a mean is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlplatform.runs.report.seeds import mean
from mlplatform.runs.sweeps.space import Space
from mlplatform.training.progress import duration

if TYPE_CHECKING:  # these import Optuna, and what ended is also told without
    from mlplatform.runs.sweeps.study import Outcome, Point
    from mlplatform.runs.sweeps.sweep import Sweep


def beginning(folder: Path, search: str, sweep: Sweep, space: Space, total: int) -> list[str]:
    """Return the lines a sweep starts with."""
    judged = ", ".join(f"{direction} {name}" for name, direction in sweep.metrics.items())
    seeds = f", {sweep.seeds} seeds each" if sweep.seeds > 1 else ""
    return [
        f"sweep  {folder}",
        f"space  {'; '.join(f'{key} {axis}' for key, axis in space.items())}",
        f"search {search}: {judged}; {total} trials, {sweep.at_once} at a time{seeds}",
    ]


def line(point: Point, outcome: Outcome, seconds: float) -> str:
    """Return a point's line."""
    values = "  ".join(f"{name} {shown(found)}" for name, found in outcome.values.items())
    said = values or outcome.reason or ""
    return f"trial {point.number:3d}  {outcome.status:<8}  {said}  {' '.join(point.overrides())}  {duration(seconds)}"


def shown(values: Sequence[float]) -> str:
    """Return a mean, with half of its 95% confidence interval where there are several values (Student's t)."""
    found = mean(values)
    return f"{found.value:.5g}" + (f" ± {found.half:.2g}" if found.half is not None else "")


def best(rows: Sequence[Mapping[str, Any]], directions: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """Return the points that no other one beats in every metric: one where there is one metric, else the front."""
    finished = [row for row in rows if row["status"] == "finished"]
    signs = {name: 1 if direction == "minimize" else -1 for name, direction in directions.items()}

    def cost(row: Mapping[str, Any]) -> tuple[float, ...]:
        return tuple(sign * row["metrics"][name] for name, sign in signs.items())

    if len(signs) == 1:
        return [min(finished, key=cost)] if finished else []
    return [row for row in finished if not any(_beats(cost(other), cost(row)) for other in finished)]


def _beats(one: tuple[float, ...], two: tuple[float, ...]) -> bool:
    return one != two and all(a <= b for a, b in zip(one, two, strict=True))


def ending(rows: Sequence[Mapping[str, Any]], directions: Mapping[str, str]) -> list[str]:
    """Return the lines a sweep ends with."""
    rows = sorted(rows, key=lambda row: row["trial"])  # they stand in the order they ended
    counts = {name: sum(row["status"] == name for row in rows) for name in ("finished", "pruned", "failed")}
    lines = [", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no trial ended"]
    for row in best(rows, directions):
        reached = "  ".join(f"{name} {shown(values)}" for name, values in row["seeds"].items())
        point = " ".join(f"{key}={value}" for key, value in row["values"].items())
        lines.append(f"best: trial {row['trial']}: {reached} with {point}")
    lines += [f"failed: trial {row['trial']}: {row['reason']}" for row in rows if row["status"] == "failed"][:10]
    return lines
