"""`mlplatform ls|compare|resume|verify-resume`: runs under outputs/."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mlplatform.cli.arguments import Arguments, suggest
from mlplatform.cli.config import composed
from mlplatform.errors import SpecError, did_you_mean, listing

SPLITS = ("train", "validation", "test")
AGES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def outputs(arguments: Arguments) -> Path:
    """Return the folder runs are looked for in."""
    return Path(arguments.text("outputs", "outputs"))


def ls(arguments: Arguments) -> None:
    """List the runs, newest last."""
    from mlplatform.runs.index import rows

    arguments.plain(most=0)
    found = rows(outputs(arguments))
    if arguments.flag("json"):
        print(json.dumps(found, indent=2))
    elif not found:
        print(f"no runs under {outputs(arguments)}/ yet")
    else:
        head = ("run", "status", "steps", "loss", "best", "age")
        print(table([head, *(_row(run) for run in found)]))
    newest = found[-1]["run"] if found else None
    suggest(*([f"mlplatform evaluate {newest}", "mlplatform compare RUN RUN"] if newest else ["mlplatform train"]))


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
    from mlplatform.cli.train import say_next
    from mlplatform.runs.resume import resume as resume_run

    say_next(folder, resume_run(folder, changes))


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


def verify_resume(arguments: Arguments) -> int:
    """Train, kill, resume and compare; returns 1 when anything differs by a bit."""
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
