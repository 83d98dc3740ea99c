"""`ls` and `compare`: rows for all kinds of runs, fast and without torch; differences by key."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Child, finished, prepared

from mlplatform.errors import RunError
from mlplatform.runs import metrics, record
from mlplatform.runs.config_file import write_config
from mlplatform.runs.index import compare, rows


def made(outputs: Path, name: str, losses: dict[int, float] | None = None, **known: Any) -> Path:
    """Make a run folder with a record, a config and metrics."""
    folder = outputs / "default" / name
    folder.mkdir(parents=True)
    begun = {"status": "finished", "host": "elsewhere", "created": time.time() - 60, "steps": 0, "versions": {}}
    record.update(folder, **begun | known)
    write_config(folder, known.get("config", {"seed": 0}))
    for step, loss in (losses or {}).items():
        metrics.Metrics(folder).log(step, {"validation/loss": loss})
    return folder


def test_a_row_says_status_steps_losses_and_age(tmp_path: Path) -> None:
    known = {"steps": 8, "metrics": {"validation/loss": 2.5, "validation/bits_per_byte": 1.5}}
    made(tmp_path, "2026-11-23_120000", **known, best={"step": 4, "validation/loss": 2.25})
    (row,) = rows(tmp_path)
    assert 59 <= row.pop("age") <= 62
    assert row == {
        "run": "default/2026-11-23_120000",
        "status": "finished",
        "steps": 8,
        "validation/loss": 2.5,
        "validation/bits_per_byte": 1.5,
        "metric": "loss",
        "best": 2.25,
        "error": None,
    }


def test_runs_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("2026-11-23_120000-2", "2026-11-22_120000", "2026-11-23_120000"):
        made(tmp_path, name)
    names = [row["run"].partition("/")[2] for row in rows(tmp_path)]
    assert names == ["2026-11-22_120000", "2026-11-23_120000", "2026-11-23_120000-2"]
    assert rows(tmp_path / "none") == []


def test_a_run_that_is_not_finished_shows_what_it_logged(tmp_path: Path) -> None:
    made(tmp_path, "2026-11-23_120000", {4: 3.0, 8: 2.0}, status="running")
    (row,) = rows(tmp_path)
    assert (row["status"], row["steps"], row["validation/loss"]) == ("running", 8, 2.0)


def test_a_broken_record_is_a_row_of_its_own(tmp_path: Path) -> None:
    made(tmp_path, "2026-11-23_120000")
    (made(tmp_path, "2026-11-23_130000") / "run.json").write_text("{")
    assert [row["status"] for row in rows(tmp_path)] == ["finished", "broken"]
    assert "run.json: can't be read" in rows(tmp_path)[1]["error"]


def test_a_killed_run_is_told_from_a_running_one(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    folder = prepared(tmp_path, "trainer.max='5000 steps'")
    child = Child(folder)
    while len(metrics.read(folder)) < 2 and child.running:
        time.sleep(0.01)
    assert rows(outputs)[0]["status"] == "running"
    child.signal(signal.SIGKILL)
    child.end()
    assert record.read(folder)["status"] == "running"
    assert rows(outputs)[0]["status"] == "killed"


def test_hundreds_of_runs_are_listed_in_well_under_a_second_without_torch(tmp_path: Path) -> None:
    for number in range(300):
        made(tmp_path, f"2026-11-23_{number:06d}", metrics={"validation/loss": 1.0}, env=["x" * 100] * 50)
    script = f"""
import sys, time
from pathlib import Path
from mlplatform.runs.index import rows
start = time.process_time()
found = rows(Path({str(tmp_path)!r}))
heavy = [name for name in ("torch", "lightning", "numpy") if name in sys.modules]
print(len(found), time.process_time() - start, heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    count, seconds, heavy = done.stdout.split(maxsplit=2)
    assert int(count) == 300
    assert float(seconds) < 0.8
    assert heavy.strip() == "[]"


def test_compare_shows_what_differs_and_nothing_else(tmp_path: Path) -> None:
    model = {"kind": "single_tower", "trunk": {"dim": 32, "betas": [0.9, 0.95]}}
    wider = {"kind": "single_tower", "trunk": {"dim": 64, "betas": [0.9, 0.99]}}
    one = made(
        tmp_path, "2026-11-23_120000", {4: 3.0}, config={"seed": 0, "model": model, "init_from": None}, seed=0,
        data={"fingerprint": "aa"}, git={"commit": "c1"}, versions={"torch": "2.13", "numpy": "2"},
    )  # fmt: skip
    two = made(
        tmp_path, "2026-11-23_130000", {4: 2.0, 8: 1.0}, config={"seed": 1, "model": wider}, seed=1,
        data={"fingerprint": "bb"}, git={"commit": "c1"}, versions={"torch": "2.14", "numpy": "2"},
    )  # fmt: skip
    found = compare(one, two)
    assert found["runs"] == [str(one), str(two)]
    assert found["config"] == {
        "init_from": [None, "-"],
        "model.trunk.betas.1": [0.95, 0.99],
        "model.trunk.dim": [32, 64],
        "seed": [0, 1],
    }
    assert found["record"] == {"seed": [0, 1], "data": ["aa", "bb"], "version of torch": ["2.13", "2.14"]}
    assert found["metrics"] == {"validation/loss": [3.0, 1.0]}
    assert json.loads(json.dumps(found)) == found


def test_two_real_runs_differ_in_what_was_typed(tmp_path: Path) -> None:
    found = compare(finished(tmp_path), finished(tmp_path, "seed=1", "trainer.clip_norm=null"))
    assert {key: value[1] for key, value in found["config"].items()} == {"seed": 1, "trainer.clip_norm": None}
    assert set(found["record"]) == {"seed"}
    one, two = found["metrics"]["validation/loss"]
    assert one != two


def test_compare_names_a_run_it_can_not_read(tmp_path: Path) -> None:
    one, two = made(tmp_path, "2026-11-23_120000"), made(tmp_path, "2026-11-23_130000")
    (two / "config.yaml").unlink()
    with pytest.raises(RunError, match=r"2026-11-23_130000/config\.yaml: can't be read"):
        compare(one, two)
