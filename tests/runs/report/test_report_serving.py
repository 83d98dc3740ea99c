"""`mlplatform ui`: the pages live, over a real socket; what it refuses."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_runs import made, sweep

from mlplatform.errors import RunError
from mlplatform.runs import metrics
from mlplatform.runs.report.serving import Server


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Server]:
    """A server of an outputs folder; a secret lies beside it."""
    (tmp_path / "secret").write_text("hush")
    sweep(tmp_path / "outputs")
    with Server(tmp_path / "outputs", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
    """Return (status, body, headers) of a request as it is, unchanged by any library."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": f"127.0.0.1:{server.server_port}", **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), dict(answer.getheaders())
    connection.close()
    return found


def test_pages_of_a_run_of_an_experiment_and_the_list(served: Server) -> None:
    status, body, headers = ask(served, "/plays/2026-11-23_000004")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "connect-src &#39;self&#39;" in body
    assert "2026-11-23_000004" in body
    assert "9 finished" in ask(served, "/plays")[1]
    assert "runs.json" in ask(served, "/")[1]
    rows = json.loads(ask(served, "/runs.json")[1])
    assert [row["status"] for row in rows] == ["finished"] * 9


@pytest.mark.parametrize(
    "path",
    ["/../secret", "/..%2fsecret", "/plays/..%2f..%2fsecret", "/%2e%2e/secret", "//etc/passwd", "/plays/../../secret",
     "/plays%2f2026-11-23_000004%2frun.json", "/plays/2026-11-23_000004/run.json", "/plays/2026-11-23_000004\0",
     "/points.json/x", "/report.html.j2", "/..", "/."],
)  # fmt: skip
def test_no_word_of_a_visitor_is_a_path(served: Server, path: str) -> None:
    status, body, _ = ask(served, path.replace("\0", "%00"))
    assert status == 404
    assert "hush" not in body
    assert "root:" not in body


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "x@evil:1"])
def test_only_names_of_this_machine_are_answered(served: Server, host: str) -> None:
    status, body, _ = ask(served, "/runs.json", Host=host)
    assert status == 403
    assert "plays" not in body


@pytest.mark.parametrize("host", ["localhost", "localhost:8765", "127.0.0.1", "[::1]:8765", "[::1]"])
def test_names_of_this_machine(served: Server, host: str) -> None:
    assert ask(served, "/runs.json", Host=host)[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_it_only_reads(served: Server, method: str) -> None:
    assert ask(served, "/runs.json", method)[0] == 501
    assert ask(served, "/runs.json", "HEAD")[:2] == (200, "")


def test_what_did_not_change_is_not_sent_again(served: Server) -> None:
    _, body, headers = ask(served, "/runs.json")
    assert ask(served, "/runs.json", **{"If-None-Match": headers["ETag"]})[:2] == (304, "")
    made(served.outputs, "2026-11-24_120000")
    status, later, _ = ask(served, "/runs.json", **{"If-None-Match": headers["ETag"]})
    assert status == 200
    assert len(json.loads(later)) == len(json.loads(body)) + 1


def test_only_new_points_are_sent_and_all_when_the_file_was_cut(served: Server) -> None:
    folder = made(served.outputs, "2026-11-24_120000", status="running", steps=5)
    name = f"plays/{folder.name}"

    def points(mark: str) -> dict[str, Any]:
        return json.loads(ask(served, f"/points.json?{name}={mark}&plays/none=")[1])[name]

    first = points("")
    assert (first["anew"], first["status"]) == (True, "running")
    assert first["curves"]["train/loss"]["x"] == [1, 2, 3, 4, 5]
    assert points(first["from"])["curves"] == {}
    metrics.Metrics(folder).log(6, {"train/loss": 1.5})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "time": 1')  # being written
    second = points(first["from"])
    assert (second["anew"], second["curves"]["train/loss"]) == (False, {"x": [6], "y": [1.5]})
    assert second["curves"]["time"]["y"][0] > 1e6  # since the first row, which is of another year
    metrics.cut(folder, 3)
    third = points(second["from"])
    assert (third["anew"], third["curves"]["train/loss"]["x"]) == (True, [1, 2, 3])
    for odd in ("x", "1.2.3", "9.-5", "%00", f"{third['from'].partition('.')[0]}.999999999"):
        assert points(odd)["anew"] is True


def test_a_port_that_is_taken_is_one_line(served: Server) -> None:
    with pytest.raises(RunError, match=f"port {served.server_port}: Address already in use; --port 0"):
        Server(served.outputs, served.server_port)


@pytest.mark.browser
def test_the_list_and_a_page_follow_a_run_that_goes_on(visit: Callable[..., Any], served: Server) -> None:
    from mlplatform.runs import record

    folder = made(served.outputs, "2026-11-24_120000", status="running", steps=5, best=None)
    listed = visit(served.address, 390)
    listed.wait_for_selector("text=9 finished, 1 running")
    assert listed.evaluate("document.documentElement.scrollWidth") <= 390
    page = visit(f"{served.address}plays/{folder.name}")
    before = page.evaluate("document.querySelector('canvas').toDataURL()")
    asked: list[str] = []
    page.on("response", lambda answer: asked.append(answer.text()) if "points.json" in answer.url else None)
    own = metrics.Metrics(folder)
    for step in range(6, 9):
        own.log(step, {"train/loss": 9.0, "train/new": 1.0})
    page.wait_for_selector("text=train/new")
    assert page.evaluate("document.querySelector('canvas').toDataURL()") != before
    sent = [json.loads(text)[f"plays/{folder.name}"] for text in asked]
    assert not any(one["anew"] for one in sent)
    assert [x for one in sent for x in one["curves"].get("train/loss", {"x": []})["x"]] == [6, 7, 8]
    record.update(folder, status="finished")
    page.wait_for_selector("header .finished")
    deadline = time.monotonic() + 20
    while "10 finished" not in listed.text_content("#summary") and time.monotonic() < deadline:
        listed.wait_for_timeout(100)
    assert "10 finished" in listed.text_content("#summary")
