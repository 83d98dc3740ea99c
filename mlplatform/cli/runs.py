"""`mlplatform ls|compare|resume|verify-resume`: runs under outputs/."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlplatform.cli.arguments import Arguments, suggest
from mlplatform.errors import SpecError, did_you_mean, listing

DISPLAY = "MLPLATFORM_DISPLAY"
SPLITS = ("train", "validation", "test")
AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def outputs(arguments: Arguments) -> Path:
    """Return the folder runs are looked for in."""
    return Path(arguments.text("outputs", "outputs"))


def ls(arguments: Arguments) -> None:
    """List the runs, newest last, or sorted by a metric."""
    from mlplatform.runs.index import rows

    experiment = [*arguments.plain(most=1), ""][0].rstrip("/") or None
    status, sort = (arguments.text(name, "") or None for name in ("status", "sort"))
    all_found = rows(outputs(arguments), experiment, status, sort)
    limit = arguments.whole("limit", len(all_found))
    found = all_found[:limit] if sort else all_found[len(all_found) - min(limit, len(all_found)) :]
    if arguments.flag("json"):
        print(json.dumps(found, indent=2))
    elif not found:
        print(f"no runs{' like that' if arguments.options or experiment else ''} under {outputs(arguments)}/ yet")
    else:
        head = ("run", "status", "steps", "loss", "metric" if sort else "best", "age")
        print(table([head, *(_row(run) for run in found)]))
        if len(found) < len(all_found):
            print(f"{len(found)} of {len(all_found)} runs")
    name = found[0 if sort else -1]["run"] if found else None
    suggest(*([f"mlplatform report {name}", "mlplatform compare RUN RUN"] if name else ["mlplatform train"]))


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    loss, best = run.get("validation/loss"), run.get("best")
    numbers = (f"{loss:.4f}" if loss is not None else "", f"{run['metric']} {best:.4f}" if best is not None else "")
    status = run["status"] + (f" ({run['error'][:60]})" if run.get("error") else "")
    return (run["run"], status, str(run.get("steps", "")), *numbers, _age(run.get("age")))


def _age(seconds: float | None) -> str:
    size, unit = next(((s, u) for s, u in AGES if seconds is not None and seconds >= s), (1, "s"))
    return "" if seconds is None else f"{seconds // size:.0f} {unit}"


def compare(arguments: Arguments) -> None:
    """Print what differs between two runs: record, config, metrics."""
    from mlplatform.runs.folder import find
    from mlplatform.runs.index import compare as compare_runs

    one, two = (find(name, outputs(arguments)) for name in arguments.plain(most=2, least=2))
    found = compare_runs(one, two)
    if arguments.flag("json"):
        print(json.dumps(found, indent=2, default=str))
    else:
        for part in ("record", "config", "metrics"):
            rows = [(name, *(_short(value) for value in values)) for name, values in found[part].items()]
            told = table([(part, *found["runs"]), *rows]) if rows else f"{part}: no difference"
            print(told, end="\n\n")
    suggest(f"mlplatform config why KEY  (see {one}/overrides.yaml, {two}/overrides.yaml)", "mlplatform ls")


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def table(rows: list[tuple[str, ...]]) -> str:
    """Return rows of text in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def resume(arguments: Arguments) -> None:
    """Go on with a run from its newest whole checkpoint; without a name, with the last one."""
    from mlplatform.cli.compose import parse
    from mlplatform.runs.folder import find

    name = [*arguments.plain(most=1), None][0]
    changes = {change.key_or_group: change.value() for change in parse(arguments.overrides())}
    folder = find(name, outputs(arguments))
    from mlplatform.cli.train import ended
    from mlplatform.runs.resume import resume as resume_run

    with shown_as(display_asked(arguments)):
        status = resume_run(folder, changes)
    ended(arguments, folder, status)


def evaluate(arguments: Arguments) -> None:
    """Measure a run on a split and say where its predictions are; `run=NAME` names the run too."""
    from mlplatform.cli.compose import parse
    from mlplatform.runs.folder import find

    changes = {change.key_or_group: change.value() for change in parse(arguments.overrides())}
    name = [*arguments.plain(most=1), changes.pop("run", None)][0]
    split, limit = arguments.text("split", "validation"), arguments.whole("limit", 0) or None
    if split not in SPLITS:
        raise SpecError(f"--split {split}: there are {listing(SPLITS)}{did_you_mean(split, SPLITS)}")
    folder = find(name, outputs(arguments))
    from mlplatform.runs.evaluate import evaluate as measure

    done = measure(folder, split, changes, limit)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    if arguments.flag("json"):
        print(json.dumps({"run": str(folder), "split": split, "metrics": done.metrics}, indent=2))
    else:
        print(table([(metric, f"{value:.6g}") for metric, value in done.metrics.items()]))
        kept = f"{done.predictions} predictions and the metrics" if done.predictions else "the metrics"
        print(f"{kept} are in {done.folder}/")
    suggest(f"mlplatform evaluate {folder} --split train", "mlplatform compare RUN RUN")


def reproduce(arguments: Arguments) -> int:
    """Run a recorded run again and compare; returns 1 when any logged number differs by a bit."""
    from mlplatform.runs.folder import find

    [name] = arguments.plain(most=1, least=1)
    folder = find(name, outputs(arguments))
    from mlplatform.runs.reproduce import reproduce as run_again

    as_json = arguments.flag("json")
    with shown_as("quiet" if as_json else None):
        found = run_again(folder, ["mlplatform", *sys.argv[1:]], (lambda line: None) if as_json else print)
    print(json.dumps(found, indent=2, default=str) if as_json else _verdict(found))
    suggest(f"mlplatform compare {folder} {found['again']}", f"mlplatform report {folder} {found['again']}")
    return 0 if found["equal"] else 1


def _verdict(found: dict[str, Any]) -> str:
    """Say whether a repeated run was the same, and what could be why where it was not."""
    lines = [f"same: {found['numbers']} numbers of {found['steps']} steps are equal bit for bit"]
    if not found["equal"]:
        first = "".join(
            f"; first at step {o['step']}: {o['metric']} was {o['was']} and is {o['is']}" for o in found["first"]
        )
        lines = [f"different: {found['unequal']} of {found['numbers']} numbers of {found['steps']} steps{first or ''}"]
    lines += [f"  {name}: was {was}, is {now}" for name, (was, now) in found["differs"].items()]
    if not found["differs"]:
        lines.append("  code, data, versions and hardware are those of the first run")
    return "\n".join(lines)


@contextlib.contextmanager
def shown_as(form: str | None) -> Iterator[None]:
    """Have this process, and the ranks it starts, show runs as `quiet` or `json` meanwhile; None changes nothing."""
    before = os.environ.get(DISPLAY)
    if form:
        os.environ[DISPLAY] = form
    try:
        yield
    finally:
        if form:
            os.environ.pop(DISPLAY)
            os.environ |= {DISPLAY: before} if before is not None else {}


def display_asked(arguments: Arguments) -> str | None:
    """Return what `--quiet` or `--json` ask for."""
    asked = [form for form in ("quiet", "json") if arguments.flag(form)]
    if len(asked) > 1:
        raise SpecError("--quiet and --json: take one of them")
    return asked[0] if asked else None


def verify_resume(arguments: Arguments) -> int:
    """Train, kill, resume and compare; returns 1 when anything differs by a bit."""
    from mlplatform.cli.config import composed

    arguments.plain(most=0)
    steps = arguments.whole("steps", 12, least=6)
    result = composed(arguments).check()
    from mlplatform.cli.train import runnable
    from mlplatform.runs.verify_resume import verify_resume as prove

    as_json = arguments.flag("json")
    with result.located():
        found = prove(
            runnable(result, arguments),
            argv=["mlplatform", *sys.argv[1:]],
            from_environment=result.from_environment,
            steps=steps,
            say=(lambda line: print(line, file=sys.stderr)) if as_json else print,
        )
    if as_json:
        print(json.dumps(found, indent=2))
    print(f"the proof is kept in {found['undisturbed']}/run.json", file=sys.stderr)
    suggest(arguments.again("train"), "mlplatform ls")
    return 0 if found["equal"] else 1
