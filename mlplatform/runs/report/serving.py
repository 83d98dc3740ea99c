"""`mlplatform ui`: the same pages live, for this machine alone. Nothing is written for a visitor.

A visitor's words never become a path: they are looked up among the runs there are. The Host header must name this
machine, or a page elsewhere could read the answers through a name of its own that points here (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from markupsafe import Markup

from mlplatform.errors import PlatformError, RunError
from mlplatform.runs import metrics
from mlplatform.runs.folder import runs_in
from mlplatform.runs.index import STATUSES, known, name_of
from mlplatform.runs.report import curves
from mlplatform.runs.report.gather import gather
from mlplatform.runs.report.page import environment, policy, render, source

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HTML, JSON = "text/html; charset=utf-8", "application/json"
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
SHOWN = ("run", "status", "steps", "metric", "best", "created", "error")
MOST = 1 << 20
"""Bytes of a run's metrics read for one answer."""


class Server(ThreadingHTTPServer):
    """Serves the runs of one outputs folder on 127.0.0.1."""

    daemon_threads = True

    def __init__(self, outputs: Path, port: int) -> None:
        self.outputs = outputs
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except OSError as error:
            raise RunError(f"port {port}: {error.strerror}; --port 0 takes a free one") from None

    @property
    def address(self) -> str:
        """Where it is: `http://127.0.0.1:8765/`."""
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    server: Server  # type: ignore[assignment]
    protocol_version, server_version, sys_version = "HTTP/1.1", "mlplatform", ""
    timeout = 60

    def do_GET(self) -> None:
        """Answer with a page, JSON, or why there is none."""
        host = (self.headers.get("Host") or "").rpartition(":")
        name = host[0] if host[2].isdecimal() else "".join(host)
        if name not in LOOPBACK:
            self._answer(HTTPStatus.FORBIDDEN, "this server is for its own machine: open it as 127.0.0.1", "text/plain")
            return
        asked = urlsplit(self.path)
        try:
            body, kind = self._found([unquote(part) for part in asked.path.strip("/").split("/")], asked.query)
        except PlatformError as error:
            self._answer(HTTPStatus.NOT_FOUND, str(error), "text/plain; charset=utf-8")
        else:
            self._answer(HTTPStatus.OK, body, kind)

    do_HEAD = do_GET

    def _found(self, parts: list[str], query: str) -> tuple[str, str]:
        """Return (body, content type) of what is asked. Raises RunError when there is no such page."""
        match parts:
            case [""]:
                return listing(), HTML
            case ["runs.json"]:
                return json.dumps(listed(self.server.outputs)), JSON
            case ["points.json"]:
                return json.dumps(points(self.server.outputs, dict(parse_qsl(query, keep_blank_values=True)))), JSON
            case [experiment] | [experiment, _]:
                return page(self.server.outputs, experiment, *parts[1:]), HTML
        raise RunError("there is no such page; / lists the runs")

    def _answer(self, status: HTTPStatus, text: str, kind: str) -> None:
        """Send an answer; one the visitor has already is only said to be the same."""
        body = text.encode()
        mark = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
        same = status == HTTPStatus.OK and self.headers.get("If-None-Match") == mark
        self.send_response(HTTPStatus.NOT_MODIFIED if same else status)
        for header, value in {"ETag": mark, **HEADERS}.items():
            self.send_header(header, value)
        if not same:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not same and self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


def listed(outputs: Path) -> list[dict[str, Any]]:
    """Return a row for each run; the same text as long as nothing changed."""
    return [{name: row.get(name) for name in SHOWN} for row in known(outputs, runs_in(outputs))]


def listing() -> str:
    """Return the page that lists the runs; its script fills it."""
    script, styles = source("runs.js"), source("page.css")
    template = environment().get_template("runs.html.j2")
    options = {"script": Markup(script), "styles": Markup(styles), "statuses": STATUSES}
    return template.render(policy=policy([script], True), **options)


def page(outputs: Path, experiment: str, name: str | None = None) -> str:
    """Return the page of a run or of an experiment's runs, which asks for new points while any of them goes on."""
    there = [folder for folder in runs_in(outputs) if folder.parent.name == experiment and name in (None, folder.name)]
    if not there:
        raise RunError(f"no run {experiment}/{name or ''} here; / lists the runs")
    return render(gather(outputs, there, experiment if name is None else None), live="/points.json")


def points(outputs: Path, asked: dict[str, str]) -> dict[str, Any]:
    """Return what the asked runs logged after where each visitor is.

    Args:
        asked: by a run's name, the mark of the answer before; empty at first.
    """
    there = {name_of(folder): folder for folder in runs_in(outputs)} if asked else {}
    chosen = [folder for name, folder in there.items() if name in asked]
    status = {row["run"]: row["status"] for row in known(outputs, chosen)}
    return {name: {"status": status[name], **_after(there[name], asked[name])} for name in status}


def _after(folder: Path, mark: str) -> dict[str, Any]:
    """Return the points after a mark; all of them where the file was written again since."""
    rows, mark, anew = metrics.since(folder, mark, MOST)
    told = curves.columns(rows, None if anew else _first_time(folder))
    return {"from": mark, "anew": anew, "curves": {n: {"x": x.tolist(), "y": y.tolist()} for n, (x, y) in told.items()}}


def _first_time(folder: Path) -> float | None:
    with (folder / metrics.FILE).open(encoding="utf-8", errors="replace") as file:
        first = metrics.parsed(file.readline())
    return first[0].get("time") if first else None
