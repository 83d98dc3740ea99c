"""metrics.jsonl: appended to, cut back, whole after a crash."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from mlplatform.errors import RunError
from mlplatform.runs import metrics
from mlplatform.runs.metrics import Metrics


def logged(folder: Path, steps: int = 5) -> Metrics:
    """Log a curve of that many steps, with a validation at every second."""
    own = Metrics(folder)
    for step in range(1, steps + 1):
        own.log(step, {"train/loss": 1 / step})
        if step % 2 == 0:
            own.log(step, {"validation/loss": 2 / step})
    return own


def test_every_value_comes_back_bit_for_bit(tmp_path: Path) -> None:
    values = {"train/loss": 1 / 3, "train/lr": 3.4e-05, "train/tokens": 123456789.0}
    Metrics(tmp_path).log(7, values)
    (row,) = metrics.read(tmp_path)
    assert {name: row[name] for name in values} == values
    assert row["step"] == 7


def test_lines_are_only_ever_added(tmp_path: Path) -> None:
    own = logged(tmp_path, 2)
    before = (tmp_path / metrics.FILE).read_bytes()
    own.log(3, {"train/loss": 0.5})
    assert (tmp_path / metrics.FILE).read_bytes().startswith(before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_json_has_no_number_for_is_null(tmp_path: Path, value: float) -> None:
    Metrics(tmp_path).log(1, {"train/loss": value, "train/lr": 0.1})
    text = (tmp_path / metrics.FILE).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["train/loss"] is None
    assert metrics.last_values(metrics.read(tmp_path)) == {"train/lr": 0.1}


@pytest.mark.parametrize("cut_off", [1, 10, 30])
def test_a_line_torn_by_a_crash_is_left_out_and_cut(tmp_path: Path, cut_off: int) -> None:
    logged(tmp_path)
    path = tmp_path / metrics.FILE
    path.write_bytes(path.read_bytes()[:-cut_off])
    rows = metrics.read(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 2, 3, 4, 4][: len(rows)] + ([5] if cut_off == 1 else [])
    metrics.cut(tmp_path, 4)
    Metrics(tmp_path).log(5, {"train/loss": 0.2})
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2, 2, 3, 4, 4, 5]


def test_a_resumed_run_keeps_what_was_logged_up_to_its_step(tmp_path: Path) -> None:
    logged(tmp_path)
    before = metrics.read(tmp_path)
    metrics.cut(tmp_path, 3)
    assert metrics.read(tmp_path) == [row for row in before if row["step"] <= 3]
    metrics.cut(tmp_path, 0)
    assert metrics.read(tmp_path) == []


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    metrics.cut(tmp_path, 0)
    assert metrics.read(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_a_column_for_each_metric(tmp_path: Path) -> None:
    logged(tmp_path, 2)
    metrics.write_table(tmp_path)
    with (tmp_path / metrics.TABLE).open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["train/loss"], row["validation/loss"]) for row in rows] == [
        ("1", "1.0", ""),
        ("2", "0.5", ""),
        ("2", "", "1.0"),
    ]


def test_a_full_disk_is_one_line(full_disk: Path) -> None:
    own = Metrics(full_disk)
    (full_disk / "all").write_bytes(b"0" * ((2 << 20) - 16384))
    own.log(1, {"train/loss": 1.0})
    with pytest.raises(RunError, match=r"metrics\.jsonl: can't be written: No space left on device"):
        own.log(2, {f"metric {number}": float(number) for number in range(10_000)})
    assert [row["step"] for row in metrics.read(full_disk)] == [1]
