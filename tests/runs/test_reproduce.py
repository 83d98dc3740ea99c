"""A recorded run, run again from its folder alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tiny_runs import finished, prepared

from mlplatform.errors import RunError
from mlplatform.runs import record
from mlplatform.runs.reproduce import compared, reproduce


def test_a_run_is_repeated_bit_for_bit_into_an_experiment_of_its_own(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    said: list[str] = []
    found = reproduce(folder, ["mlplatform", "reproduce", str(folder)], said.append)
    again = Path(found["again"])
    assert (found["equal"], found["unequal"], found["first"], found["differs"]) == (True, 0, [], {})
    assert found["steps"] == 8
    assert found["numbers"] > 8 * 4
    assert again.parent == tmp_path / "outputs" / "default-reproduced"
    assert said == [f"again  {again}"]
    assert record.read(again)["reproduces"] == record.read(folder)["id"]
    newest = [max((run / "checkpoints").iterdir()) / "model.safetensors" for run in (folder, again)]
    assert newest[0].read_bytes() == newest[1].read_bytes()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_differs_is_named(tmp_path: Path) -> None:
    """The record and the config are changed behind the run's back, as other code or another machine would."""
    folder = finished(tmp_path, "trainer.max='4 steps'")
    record.update(folder, source="0" * 16, hardware=["64 CPU cores"], versions={"torch": "2.0"})
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "seed": 1}))
    found = reproduce(folder, ["mlplatform"], lambda line: None)
    assert not found["equal"]
    assert found["first"][0]["step"] == 1
    assert {"code: hash of the package", "hardware", "version: torch", "version: numpy"} <= set(found["differs"])
    assert found["differs"]["version: torch"][0] == "2.0"
    assert "data: fingerprint" not in found["differs"]


def test_rows_are_compared_up_to_where_the_shorter_run_ends() -> None:
    one = [{"step": s, "time": 1.0, "train/loss": 1 / s, "perf/memory_gb": 1.0} for s in (1, 2, 3)]
    two = [{**row, "time": 2.0, "perf/memory_gb": 2.0} for row in one[:2]]
    assert compared(one, two) == {"equal": True, "steps": 2, "numbers": 2, "unequal": 0, "first": []}
    two[1]["train/loss"] += 1e-16 + 1e-15
    found = compared(one, two)
    assert found["first"] == [{"step": 2, "metric": "train/loss", "was": 0.5, "is": two[1]["train/loss"]}]
    assert compared(one, [])["equal"] is False
    assert compared(one, [{"step": 1, "train/loss": 1.0, "validation/loss": 2.0}])["unequal"] == 1


def test_a_run_that_logged_nothing_can_not_be_compared(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    with pytest.raises(RunError, match="it logged no metrics"):
        reproduce(folder, [], print)
    assert not (tmp_path / "outputs" / "default-reproduced").exists()


def test_the_hash_of_the_source_changes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    monkeypatch.setattr(record, "PACKAGE", tmp_path)
    first = record.source()
    (tmp_path / "a.py").write_text("x = 2")
    second = record.source()
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, record.source()}) == 3
    assert len(first) == 16
