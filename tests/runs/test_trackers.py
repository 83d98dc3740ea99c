"""TensorBoard and Weights & Biases, written for real and read back; their trouble never stops a run."""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb_file
from free_port import free_port
from tiny_runs import finished

from mlplatform.errors import SpecError
from mlplatform.registry import Spec
from mlplatform.runs import metrics, record
from mlplatform.runs.trackers import Recorders, trackers
from mlplatform.runs.trackers.mlflow import MLflow
from mlplatform.runs.trackers.tensorboard import TensorBoard
from mlplatform.runs.trackers.weights_and_biases import WandB

CONFIG = {
    "seed": 3,
    "model": {"trunk": {"dim": 32, "layers": ["a", "b"]}, "hf": {"weights": {"layers.*.{q,k}": "h.*.{q,k}_proj"}}},
    "data": {"path": "***"},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a record."""
    folder = tmp_path / "run"
    folder.mkdir()
    record.update(folder, id="default-2026-11-23_120000", status="running", experiment="plays")
    return folder


def session(folder: Path, spec: dict[str, Any], steps: range, status: str = "finished") -> list[str]:
    """Log a session's steps to the run's own file and a tracker; return what was said."""
    said: list[str] = []
    kept = Recorders(metrics.Metrics(folder), trackers(Spec.of(spec, "logger", "logger")), said.append)
    kept.start(folder, CONFIG)
    for step in steps:
        kept.log(step, {"train/loss": 1 / step, "train/lr": step / 7})
    kept.finish(status)
    return said


def written(folder: Path) -> list[wandb_file.Written]:
    """Return W&B's offline files of a run, oldest first; its service may write their end after `finish` returned."""
    paths = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    deadline = time.monotonic() + 20
    while any(wandb_file.read(path).exit_code is None for path in paths) and time.monotonic() < deadline:
        time.sleep(0.02)
    return [wandb_file.read(path) for path in paths]


def test_wandb_offline_holds_the_config_and_the_curves(run: Path) -> None:
    spec = {"kind": "wandb", "mode": "offline", "project": "plays", "group": "small", "tags": ["one", "two"]}
    assert session(run, spec, range(1, 6)) == []
    (found,) = written(run)
    assert (found.project, found.group, found.tags, found.name) == (
        "plays",
        "small",
        ["one", "two"],
        "default-2026-11-23_120000",
    )
    assert {name: value for name, value in found.config.items() if name != "_wandb"} == CONFIG
    assert found.curve("train/loss") == {step: 1 / step for step in range(1, 6)}
    assert found.curve("train/lr") == {step: step / 7 for step in range(1, 6)}
    assert found.summary["status"] == "finished"
    assert found.exit_code == 0
    assert found.id == record.read(run)["wandb_id"]


def test_wandb_gets_the_data_the_samples_and_the_checkpoint_of_a_real_run(tmp_path: Path) -> None:
    folder = finished(tmp_path, "logger=wandb", "logger.mode=offline", "logger.tags=[one]")
    (found,) = written(folder)
    known, identity = record.read(folder), record.read(folder)["wandb_id"]
    assert (found.name, found.group, found.tags) == (known["id"], "default", ["one"])
    fingerprint = known["data"]["fingerprint"]
    data = found.artifacts[f"data-{fingerprint[:16]}"]
    assert (data.type, data.metadata) == ("dataset", {"fingerprint": fingerprint})
    assert json.loads(Path(data.files["data.json"]).read_text()) == known["data"]
    model = found.artifacts[f"model-{identity}"]
    newest = max((folder / "checkpoints").iterdir())
    assert (model.type, model.metadata["data"], model.metadata["checkpoint"]) == ("model", fingerprint, newest.name)
    assert model.metadata["validation/loss"] == known["metrics"]["validation/loss"]
    assert newest.name.replace("=", "-") in model.aliases
    assert model.files["model.safetensors"] == (newest / "model.safetensors").resolve().as_uri()
    assert not any("optimizer" in name for name in model.files)
    (table,) = [one for one in found.artifacts.values() if one.type == "run_table"]
    rows = json.loads(Path(table.files["samples.table.json"]).read_text())["data"]
    assert rows == [["step=00000008", (folder / "samples" / "step=00000008.txt").read_text()]]
    assert found.alerts == []


def test_a_run_that_fails_is_told_with_its_reason(run: Path) -> None:
    kept = Recorders(
        metrics.Metrics(run), trackers(Spec.of({"kind": "wandb", "mode": "offline"}, "logger", "logger")), print
    )
    kept.start(run, CONFIG)
    kept.finish("failed", "RunError: step 2: the loss is nan")
    (found,) = written(run)
    assert found.alerts == [("default-2026-11-23_120000 failed", "RunError: step 2: the loss is nan")]
    assert (found.exit_code, found.group) == (1, "plays")


def test_a_resumed_run_goes_on_under_its_wandb_id(run: Path) -> None:
    spec = {"kind": "wandb", "mode": "offline", "name": "mine"}
    session(run, spec, range(1, 6), "preempted")
    metrics.cut(run, 3)
    session(run, spec, range(4, 8), "failed")
    first, second = written(run)
    assert first.id == second.id
    assert (first.exit_code, second.exit_code) == (0, 1)
    assert list(second.curve("train/loss")) == [4, 5, 6, 7]
    assert second.name == "mine"


def test_many_and_large_rows_come_back_across_the_blocks_of_the_file(run: Path) -> None:
    kept = WandB(mode="offline")
    kept.start(run, {"text": "x" * 100_000})
    for step in range(1, 301):
        kept.log(step, {f"metric/{number}": float(step * number) for number in range(30)})
    kept.finish("finished", None)
    (found,) = written(run)
    assert len(found.config["text"]) == 100_000
    assert found.curve("metric/29") == {step: step * 29.0 for step in range(1, 301)}


def ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the library warned of; W&B logs into its own files."""
    return [entry.getMessage() for entry in caplog.records if entry.name.startswith("mlplatform")]


def test_without_a_key_wandb_writes_offline_and_says_so_once(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    with caplog.at_level(logging.WARNING, "mlplatform"):
        said = session(run, {"kind": "wandb", "mode": "online"}, range(1, 4))
    assert said == []
    (line,) = ours(caplog)
    assert line.startswith("W&B: no API key: set WANDB_API_KEY or run `wandb login`; writing offline")
    assert "wandb sync" in line
    (found,) = written(run)
    assert list(found.curve("train/loss")) == [1, 2, 3]


@pytest.mark.parametrize(("key", "told"), [("short", "invalid"), ("0123456789" * 4, "W&B: ")])
def test_a_bad_key_or_no_network_is_one_line_and_the_run_is_written_offline(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, key: str, told: str
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("mlplatform.runs.trackers.weights_and_biases.SECONDS_TO_CONNECT", 3)
    with caplog.at_level(logging.WARNING, "mlplatform"):
        said = session(run, {"kind": "wandb", "mode": "online"}, range(1, 4))
    assert said == []
    (line,) = ours(caplog)
    assert told in line
    assert "\n" not in line
    assert list(written(run)[-1].curve("train/loss")) == [1, 2, 3]
    assert len(metrics.read(run)) == 3
    assert not any(key.encode() in path.read_bytes() for path in run.rglob("*") if path.is_file() and len(key) > 5)


@pytest.mark.parametrize("answer", [403, 500, None])
def test_a_server_that_refuses_or_never_answers_is_one_line_and_the_run_is_written_offline(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: int | None
) -> None:
    """W&B's own client against a server of this machine: no permission, out of order, or silent."""
    over, asked = threading.Event(), list[str]()

    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            if answer is None:
                over.wait(60)
                return
            self.send_response(answer)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr("mlplatform.runs.trackers.weights_and_biases.SECONDS_TO_CONNECT", 4)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            with caplog.at_level(logging.WARNING, "mlplatform"):
                said = session(run, {"kind": "wandb", "mode": "online"}, range(1, 4))
        finally:
            over.set()
            server.shutdown()
    assert asked  # it was reached
    assert said == []
    (line,) = ours(caplog)
    assert "writing offline, send it later: wandb sync" in line
    assert "\n" not in line
    assert list(written(run)[-1].curve("train/loss")) == [1, 2, 3]
    assert not any(b"0123456789" * 4 in path.read_bytes() for path in run.rglob("*") if path.is_file())


def test_wandb_mode_is_taken_from_the_environment_unless_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert (WandB().mode, WandB(mode="online").mode) == ("offline", "online")
    monkeypatch.delenv("WANDB_MODE")
    assert WandB().mode == "online"


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return the curves TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    names = events.Tags()["scalars"]
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in names}


def test_tensorboard_holds_the_config_and_the_curves(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert session(run, {"kind": "tensorboard"}, range(1, 6)) == []
    found = scalars(run)
    assert found["train/loss"] == pytest.approx({step: 1 / step for step in range(1, 6)})
    assert found["train/lr"] == pytest.approx({step: step / 7 for step in range(1, 6)})
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    (text,) = events.Tensors("config/text_summary")
    assert b"dim: 32" in text.tensor_proto.string_val[0]


def test_tensorboard_has_each_step_of_a_resumed_run_once(run: Path) -> None:
    """The first session dies without closing its file, having logged steps that are done again."""
    own, first = metrics.Metrics(run), TensorBoard()
    first.start(run, CONFIG)
    for step in range(1, 6):
        own.log(step, {"train/loss": float(step)})
        first.log(step, {"train/loss": -1.0})
    metrics.cut(run, 3)
    session(run, {"kind": "tensorboard"}, range(4, 8))
    losses = scalars(run)["train/loss"]
    assert losses == pytest.approx({1: 1, 2: 2, 3: 3, 4: 1 / 4, 5: 1 / 5, 6: 1 / 6, 7: 1 / 7})
    first.finish("failed", None)


def test_several_at_once_and_one_of_lightnings(run: Path) -> None:
    csv = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(run / "csv"), "name": "x", "version": 0}
    said = session(run, {"kind": "several", "loggers": [{"kind": "tensorboard"}, csv]}, range(1, 4))
    assert said == []
    assert list(scalars(run)["train/loss"]) == [1, 2, 3]
    lines = (run / "csv" / "x" / "version_0" / "metrics.csv").read_text().splitlines()
    assert len(lines) == 4
    assert "train/loss" in lines[0]


class Broken:
    """A tracker that fails where told."""

    def __init__(self, at: str) -> None:
        self.at, self.calls = at, 0

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        self._call("start")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._call("log")

    def finish(self, status: str, error: str | None) -> None:
        self._call("finish")

    def _call(self, name: str) -> None:
        self.calls += 1
        if name == self.at:
            raise ConnectionError("the server\nis gone")


@pytest.mark.parametrize(("at", "calls"), [("start", 1), ("log", 2), ("finish", 5)])
def test_a_tracker_that_fails_is_said_once_and_left_out(run: Path, at: str, calls: int) -> None:
    said: list[str] = []
    broken, whole = Broken(at), Broken("never")
    kept = Recorders(metrics.Metrics(run), [broken, whole], said.append)
    kept.start(run, CONFIG)
    for step in (1, 2, 3):
        kept.log(step, {"train/loss": 1.0})
    kept.finish("finished")
    assert said == ["Broken: the server is gone; training goes on, metrics.jsonl has everything"]
    assert (broken.calls, whole.calls) == (calls, 5)
    assert [row["step"] for row in metrics.read(run)] == [1, 2, 3]


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "mlflow"])
def test_a_package_that_is_missing_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == kind else found(name))
    with pytest.raises(SpecError, match=re.escape(f'pip install "mlplatform[{kind}]"')):
        trackers(Spec.of({"kind": kind}, "logger", "logger"))


def sql(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """Ask the SQLite file MLflow keeps beside the runs."""
    import sqlite3

    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as base:
        return base.execute(query).fetchall()


@pytest.fixture
def nested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder where runs lie: outputs/experiment/date. A busy machine may take its time over MLflow's tables."""
    monkeypatch.setattr("mlplatform.runs.trackers.mlflow.SECONDS_TO_END", 300)
    folder = tmp_path / "outputs" / "plays" / "2026-11-23_120000"
    folder.mkdir(parents=True)
    record.update(folder, id="plays-2026-11-23_120000", status="running", experiment="plays")
    return folder


def test_mlflow_holds_the_config_and_each_step_of_a_resumed_run_once(nested: Path) -> None:
    assert session(nested, {"kind": "mlflow"}, range(1, 6), "preempted") == []
    metrics.cut(nested, 3)
    assert session(nested, {"kind": "mlflow"}, range(4, 8)) == []
    outputs = nested.parent.parent
    points = sql(outputs, "SELECT step, value FROM metrics WHERE key = 'train/loss' ORDER BY step")
    assert points == [(step, 1 / step) for step in range(1, 8)]
    assert sql(outputs, "SELECT name, status FROM runs") == [("plays-2026-11-23_120000", "FINISHED")]
    parameters = dict(sql(outputs, "SELECT key, value FROM params"))
    assert parameters["model.trunk.dim"] == "32"
    assert parameters["model.hf.weights.layers._._q_k_"] == "h.*.{q,k}_proj"
    assert sql(outputs, "SELECT name FROM experiments WHERE name = 'plays'") == [("plays",)]
    assert "mlflow_id" not in record.read(nested)


def test_a_server_that_is_away_never_stops_training_and_gets_the_rest_later(
    nested: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, "mlplatform"), monkeypatch.context() as patch:
        patch.setattr("mlplatform.runs.trackers.mlflow.SECONDS_TO_END", 8)
        said = session(nested, {"kind": "mlflow", "uri": "http://127.0.0.1:9"}, range(1, 4), "preempted")
    assert time.monotonic() - began < 30
    (line,) = ours(caplog)
    assert line.startswith("MLflow: ")
    assert line.endswith("training goes on, and what is missed is sent later")
    (last,) = said
    assert last.startswith("MLflow: not all was sent: ")
    assert [row["step"] for row in metrics.read(nested)] == [1, 2, 3]
    assert session(nested, {"kind": "mlflow"}, range(4, 6)) == []
    points = sql(nested.parent.parent, "SELECT step FROM metrics WHERE key = 'train/loss' ORDER BY step")
    assert points == [(1,), (2,), (3,), (4,), (5,)]


class Served:
    """A real MLflow server of one folder, which may be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder, self.address = folder, f"http://127.0.0.1:{self.port}"
        folder.mkdir()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self.port}", "--workers=1"]
        command += [f"--backend-store-uri=sqlite:///{self.folder}/mlflow.db", f"--artifacts-destination={self.folder}"]
        with (self.folder / "said.txt").open("ab") as said:
            variables = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            options = {"cwd": self.folder, "env": variables, "start_new_session": True}
            self.process = subprocess.Popen(command, stdout=said, stderr=said, **options)
        deadline = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return
            except OSError:
                assert self.process.poll() is None, (self.folder / "said.txt").read_text()
                assert time.monotonic() < deadline, (self.folder / "said.txt").read_text()
                time.sleep(0.2)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def test_a_server_killed_in_the_middle_has_everything_once_it_is_back(
    nested: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, said = Served(tmp_path / "server"), list[str]()
    server.start()
    try:
        spec = Spec.of({"kind": "mlflow", "uri": server.address}, "logger", "logger")
        kept = Recorders(metrics.Metrics(nested), trackers(spec), said.append)
        kept.start(nested, CONFIG)
        kept.log(1, {"train/loss": 1.0})
        sent = "SELECT step, value FROM metrics WHERE key = 'train/loss' ORDER BY step"
        until(lambda: sql(server.folder, sent) == [(1, 1.0)])
        server.kill()
        with caplog.at_level(logging.WARNING, "mlplatform"):
            slowest = 0.0
            for step in range(2, 40):
                began = time.monotonic()
                kept.log(step, {"train/loss": 1 / step})
                slowest = max(slowest, time.monotonic() - began)
            until(lambda: ours(caplog))
        assert slowest < 2  # nothing waits for the server
        server.start()
        kept.log(40, {"train/loss": 1 / 40})
        kept.finish("finished")
        (line,) = ours(caplog)
        assert line.endswith("training goes on, and what is missed is sent later")
        assert said == []
        assert sql(server.folder, sent) == [(step, 1 / step) for step in range(1, 41)]
        assert sql(server.folder, "SELECT name, status FROM runs") == [("plays-2026-11-23_120000", "FINISHED")]
    finally:
        server.kill()


def until(true: Callable[[], Any], seconds: float = 120) -> None:
    """Wait for something."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_mlflow_in_plain_files_is_refused_before_anything_starts() -> None:
    for uri in ("mlruns", "file:///tmp/mlruns"):
        with pytest.raises(SpecError, match=r"no longer keeps plain files; use sqlite:///FILE"):
            MLflow(uri=uri)
