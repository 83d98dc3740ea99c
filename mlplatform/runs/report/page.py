"""Writes what was gathered as one HTML file that needs nothing else: no network, no other file.

Names, texts and settings are strangers' text: the template escapes every one, the curves' JSON has no `<`, and the
page's security policy runs the two scripts that belong to it, by their hashes, and asks nothing of any server.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mlplatform.runs.report import drawing
from mlplatform.runs.report.gather import RunTold, Told, brief, result_of
from mlplatform.runs.report.seeds import Mean
from mlplatform.runs.words import count
from mlplatform.training.progress import duration

HERE = Path(__file__).resolve().parent


def render(told: Told, live: str | None = None) -> str:
    """Return the page.

    Args:
        live: where the page asks for new points, when a server shows it; None for a file.
    """
    scripts = [source("uplot/uPlot.iife.min.js"), source("page.js")]
    drawings = {}
    if told.sweep and told.monitor:
        drawings = {
            "parallel": drawing.parallel(told.sweep, told.monitor, told.higher),
            "progress": drawing.progress(told.sweep),
        }
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            told=told,
            policy=policy(scripts, live is not None),
            scripts=[Markup(script) for script in scripts],
            styles=Markup(source("uplot/uPlot.min.css") + source("page.css")),
            data=embedded(data(told, live)),
            drawings=drawings,
            result=lambda run: result_of(run, told.monitor),
        )
    )


def data(told: Told, live: str | None) -> dict[str, Any]:
    """Return what the page's script reads: charts and curves."""
    runs = [
        {
            "name": run.name,
            "label": run.label,
            "group": run.group,
            "status": run.row["status"],
            "from": run.mark,
            **run.curves,
        }
        for run in told.drawn
    ]
    return {"charts": told.charts, "runs": runs, "live": live}


def embedded(value: Any) -> Markup:
    """Return JSON that can stand inside a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, default=str)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def policy(scripts: list[str], live: bool) -> str:
    """Return the content security policy: these scripts, styles and media of the page itself, and no request."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    asks = "connect-src 'self'; " if live else ""
    rest = "style-src 'unsafe-inline'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
    return f"default-src 'none'; script-src {allowed}; {asks}{rest}"


@functools.cache
def source(name: str) -> str:
    """Return one of the files beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


@functools.cache
def environment() -> jinja2.Environment:
    """Return jinja's environment: everything is escaped, and a name that is not given is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"figure": figure, "mean": mean, "brief": brief, "count": count, "duration": duration, "when": when}
    made.globals["swatch"] = swatch
    return made


def figure(value: Any) -> str:
    """Return a number of a table."""
    if isinstance(value, float):
        return f"{value:,.4f}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.4g}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def mean(value: Mean | None) -> str:
    """Return `2.0134 ± 0.0051`: as many digits as the interval has two of."""
    if value is None or not value.half:
        return figure(value and value.value)
    digits = max(0, 1 - math.floor(math.log10(value.half)))
    return f"{value.value:,.{digits}f} ± {value.half:,.{digits}f}"


def when(seconds: float | None) -> str:
    """Return a moment as `2026-11-23 18:12`."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "–"


def swatch(run: RunTold) -> int:
    """Return the number of a run's colour, shared by the runs of a group."""
    return run.group % 10
