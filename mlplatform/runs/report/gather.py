"""Everything a report says, read of the run folders; nothing is drawn here."""

from __future__ import annotations

import itertools
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mlplatform.errors import RunError
from mlplatform.places import recipes
from mlplatform.runs import metrics, record
from mlplatform.runs.config_file import read_shown
from mlplatform.runs.index import configs, differences, known, name_of
from mlplatform.runs.report import curves, seeds, sweep
from mlplatform.runs.report.samples import Budget, evaluations, texts
from mlplatform.runs.report.trials import trials

DRAWN = 40
"""Runs whose curves one page shows; of more, the best."""
LISTED = 200
"""Runs whose rows one page shows."""
TITLES = {
    "train/loss": "training loss",
    "validation/loss": "validation loss",
    "train/grad_norm": "gradient norm",
    "train/lr": "learning rate",
    "perf/tokens_per_second": "tokens a second",
    "perf/data_wait": "share of the time spent waiting for data",
    "perf/memory_gb": "memory, GB",
    "perf/mfu": "share of the device's peak FLOP/s",
}
INTERESTING = list(TITLES)[2:]
UNTOLD = ("outputs", "kind")


@dataclass
class RunTold:
    """One run on a page: `group` numbers runs that differ in their seed alone, `mark` says how far its metrics go."""

    name: str
    folder: Path
    row: dict[str, Any]
    config: dict[str, Any]
    group: int
    label: str = ""
    curves: dict[str, Any] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    mark: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        return self.row["metrics"]


@dataclass
class Told:
    """What a page says: `drawn` are the runs with curves, `runs` those with a row, of `total` there are.

    `results` are rows of runs that differ in their seed alone, of `settings` there are.
    """

    title: str
    runs: list[RunTold]
    drawn: list[RunTold]
    total: int
    counts: dict[str, int]
    charts: list[dict[str, Any]]
    differing: dict[str, list[Any]]
    monitor: str | None
    higher: bool
    results: list[dict[str, Any]]
    settings: int
    sweep: dict[str, Any] | None
    trials: dict[str, Any] | None
    points: dict[str, int]
    made: float
    detail: dict[str, Any] = field(default_factory=dict)


def gather(outputs: Path, folders: Sequence[Path], title: str | None = None) -> Told:
    """Read what a page of these runs says.

    Raises:
        RunError: none of them can be read.
    """
    rows, settings = known(outputs, folders), configs(outputs, folders)
    found = zip(folders, rows, settings, seeds.groups(settings), strict=True)
    runs = [RunTold(name_of(f), f, row, config, group) for f, row, config, group in found if row["status"] != "broken"]
    if not runs:
        raise RunError(f"{folders[0]}: its {metrics.FILE} or record can't be read: {rows[0].get('error')}")
    ended = trials([run.folder for run in runs])
    if ended and len(ended["metrics"]) == 1:
        [(monitor, direction)] = ended["metrics"].items()
        higher = direction == "maximize"
    else:
        monitor = _monitor(runs)
        higher = _is_higher_better(monitor, runs)
    ranked = _ranked(runs, monitor, higher)
    kept = set(map(id, ranked[:LISTED]))
    listed = [run for run in runs if id(run) in kept]
    drawn = listed if len(listed) <= DRAWN else ranked[:DRAWN]
    differing = {k: v for k, v in differences([run.config for run in runs], None).items() if k not in UNTOLD}
    _label(runs, differing)
    points = _read_curves(drawn)
    results = _results(runs, monitor)
    if len(results) > LISTED:
        results.sort(key=lambda row: _order(means[0] if (means := row["means"].get(monitor)) else None, higher))
    told = Told(
        title=title or (runs[0].name if len(runs) == 1 else f"{len(runs)} runs"),
        runs=listed,
        drawn=drawn,
        total=len(runs),
        counts=dict(Counter(run.row["status"] for run in runs)),
        charts=_charts(drawn),
        differing={key: [run.config.get(key) for run in listed] for key in differing},
        monitor=monitor,
        higher=higher,
        results=results[:LISTED],
        settings=len(results),
        sweep=_sweep(runs, differing, monitor, higher),
        trials=ended,
        points=points,
        made=time.time(),
    )
    for run in drawn:
        run.record = record.read(run.folder)
    told.detail = details(drawn if len(drawn) <= 8 else ranked[:4])
    return told


def _monitor(runs: list[RunTold]) -> str | None:
    """Return the metric that chooses in most runs; else the first held-out loss there is."""
    named = [run.row["metric"] for run in runs if run.row.get("metric")]
    if named:
        chosen = max(sorted(set(named)), key=named.count)
        return chosen if chosen in runs[0].metrics else f"validation/{chosen}"
    there = {name for run in runs for name in run.metrics}
    return next((name for name in ("validation/loss", "train/loss") if name in there), None)


def _is_higher_better(monitor: str | None, runs: list[RunTold]) -> bool:
    """Whether runs called a value their best because it was the largest, not the smallest, of their validations."""
    votes = 0
    for run in runs[:20]:
        rows = metrics.read(run.folder) if run.row.get("best") is not None else []
        values = [row[monitor] for row in rows if monitor and row.get(monitor) is not None]
        if len(values) > 1 and max(values) > min(values):
            votes += (run.row["best"] == max(values)) - (run.row["best"] == min(values))
    return votes > 0


def result_of(run: RunTold, monitor: str | None) -> float | None:
    """Return a run's result: its best by the metric that chooses, or the last value."""
    own = run.row.get("best") if monitor and run.row.get("metric") == monitor.removeprefix("validation/") else None
    return own if own is not None else run.metrics.get(monitor or "")


def _ranked(runs: list[RunTold], monitor: str | None, higher: bool) -> list[RunTold]:
    return sorted(runs, key=lambda run: _order(result_of(run, monitor), higher))


def _order(value: float | None, higher: bool) -> tuple[bool, float]:
    """Return what sorts values, the best first and those there are not last."""
    return value is None, 0.0 if value is None else -value if higher else value


def _label(runs: list[RunTold], differing: dict[str, list[Any]]) -> None:
    """Name each run by what it has otherwise than the others, as shortly as can be told apart."""
    lasts = [key.rpartition(".")[2] for key in differing]
    for run in runs:
        parts = []
        for key, last in zip(differing, lasts, strict=True):
            name = last if lasts.count(last) == 1 else ".".join(key.split(".")[-2:])
            parts.append(f"{name}={brief(run.config.get(key))}")
        run.label = " ".join(parts[:4]) if len(runs) > 1 and parts else run.folder.name
    labels = Counter(run.label for run in runs)
    for run in runs:
        if labels[run.label] > 1:
            run.label = f"{run.label} {run.folder.name}" if run.label != run.folder.name else run.name


def brief(value: Any) -> str:
    """Return a setting as a short text."""
    said = "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return said if len(said) <= 24 else f"{said[:21]}..."


def _read_curves(runs: list[RunTold]) -> dict[str, int]:
    """Put thinned curves into each run; return how many points were logged and how many a curve has at most."""
    full = {}
    for run in runs:
        rows, run.mark, _ = metrics.since(run.folder)
        full[run.name] = curves.columns(rows)
    number = sum(len(columns) for columns in full.values())
    most = curves.budget(number)
    for run in runs:
        columns = full[run.name]
        over = {name: curves.packed(x, y, 60) for name, (x, y) in columns.items() if name in curves.APART}
        told = {name: curves.packed(x, y, most) for name, (x, y) in columns.items() if name not in curves.APART}
        run.curves = {"over": over, "told": told}
    return {"logged": max((len(x) for c in full.values() for x, _ in c.values()), default=0), "most": most}


def _charts(runs: list[RunTold]) -> list[dict[str, Any]]:
    """Return the charts: losses first, then what is held out, then the course of training, then the machine."""
    there = {name for run in runs for name in run.curves["told"]}
    losses = [name for name in ("train/loss", "validation/loss") if name in there]
    rest = sorted(there - {*losses, *INTERESTING}, key=lambda name: (not name.startswith("validation/"), name))
    alone = len(runs) == 1 and len(losses) == 2
    first = [{"title": "loss", "series": losses}] if alone else [_chart(name) for name in losses]
    return [*first, *map(_chart, [*rest, *(name for name in INTERESTING if name in there)])]


def _chart(name: str) -> dict[str, Any]:
    return {"title": TITLES.get(name) or name.replace("/", " ").replace("_", " "), "series": [name]}


def _results(runs: list[RunTold], monitor: str | None) -> list[dict[str, Any]]:
    """Return a row for each group of seeds: how many runs, and the mean of each final metric."""
    held_out = {name for run in runs for name in run.metrics if name.startswith("validation/")}
    names = sorted(held_out or {"train/loss"}, key=lambda name: (name != monitor, name))
    found, groups = [], dict[int, list[RunTold]]()
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    for number, members in sorted(groups.items()):
        values = {name: [run.metrics[name] for run in members if run.metrics.get(name) is not None] for name in names}
        label = " ".join(part for part in members[0].label.split() if not part.startswith("seed="))
        means = {name: seeds.mean(each) for name, each in values.items() if each}
        found.append({"group": number, "label": label, "count": len(members), "means": means})
    return found


def _sweep(
    runs: list[RunTold], differing: dict[str, list[Any]], monitor: str | None, higher: bool
) -> dict[str, Any] | None:
    """Return what is drawn of a sweep: a result for each run, its settings, and how much each matters."""
    pairs = [(run, value) for run in runs if (value := result_of(run, monitor)) is not None and np.isfinite(value)]
    keys = [key for key in differing if len({repr(run.config.get(key)) for run, _ in pairs}) > 1]
    if len(pairs) < sweep.LEAST_RUNS or not keys:
        return None
    results = [value for _, value in pairs]
    settings = {key: [run.config.get(key) for run, _ in pairs] for key in keys}
    weights = {key: sweep.importance(values, np.asarray(results)) for key, values in settings.items()}
    chosen = sorted(keys, key=lambda key: -weights[key])[:8]
    axes = [{"name": key, "values": settings[key]} for key in chosen]
    best = sweep.best_so_far(results, higher)
    return {"runs": [r for r, _ in pairs], "results": results, "axes": axes, "weights": weights, "best": best}


def details(runs: Sequence[RunTold]) -> dict[str, Any]:
    """Return by run what takes room: samples, evaluations with pictures and sound, the whole config, how to run it."""
    budget, found = Budget(), {}
    for run in runs:
        found[run.name] = {
            "texts": texts(run.folder),
            "evaluations": evaluations(run.folder, budget),
            "config": yaml.safe_dump(read_shown(run.folder), sort_keys=False, allow_unicode=True),
            "command": shlex.join(run.record.get("argv") or []),
            "recipe": recipe_header(run.record.get("argv") or []),
        }
    return {"runs": found, "refused": budget.refused}


def recipe_header(argv: Sequence[str]) -> list[str]:
    """Return the lines at the head of the shipped recipe a command names: what it reached, and the baseline."""
    name = next((word.partition("=")[2] for word in argv if word.startswith("recipes=")), None)
    file = next((file for file in recipes().glob("*.yaml") if file.stem == name), None)
    lines = file.read_text(encoding="utf-8").splitlines() if file else []
    head = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return [line.removeprefix("#").removeprefix(" ") for line in head if "@package" not in line]
