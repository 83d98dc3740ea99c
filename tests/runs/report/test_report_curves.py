"""Thinned curves: few points, all of them logged, and the shape they show."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mlplatform.runs.report.curves import budget, columns, packed, short, thinned


def test_a_thinned_curve_has_points_that_were_logged_and_keeps_its_ends_and_its_spike() -> None:
    x = np.arange(10_000.0)
    y = np.sin(x / 700) + 0.01 * np.random.default_rng(0).normal(size=len(x))
    y[4321] = 9.0
    kept_x, kept_y = thinned(x, y, 200)
    assert len(kept_x) == 200
    assert (np.diff(kept_x) > 0).all()
    assert (kept_y == y[kept_x.astype(int)]).all()
    assert {0, 4321, 9999} <= set(kept_x.astype(int).tolist())
    between = np.interp(x, kept_x, kept_y)
    assert np.abs(np.delete(between - y, range(4250, 4400))).max() < 0.12
    every = np.interp(x, x[::50], y[::50])
    assert abs(every[4321] - 9) > 7  # what taking each fiftieth point would have lost


def test_a_short_curve_is_whole() -> None:
    x, y = np.arange(5.0), np.arange(5.0) ** 2
    assert thinned(x, y, 5)[0] is x
    for most in (3, 4):
        assert len(thinned(x, y, most)[0]) == most


def test_steps_are_packed_as_differences_and_values_to_five_digits() -> None:
    told = packed(np.array([3.0, 5, 10]), np.array([1 / 3, 2.0, 1e-7 / 3]), 100)
    assert told == {"x": [3, 2, 5], "y": [0.33333, 2, 3.3333e-08]}
    assert json.dumps(short(123456.7)) == "123460"


def test_many_curves_share_the_room() -> None:
    assert budget(3) == 1000
    assert budget(160) * 160 <= 36_000
    assert budget(100_000) == 80


def test_columns_leave_out_what_was_not_finite_and_count_time_from_the_first_row() -> None:
    rows = [{"step": 1, "time": 50.0, "a": 1.0, "b": None}, {"step": 2, "time": 52.5, "b": 2.0}]
    found = {name: (x.tolist(), y.tolist()) for name, (x, y) in columns(rows).items()}
    assert found == {"time": ([1, 2], [0, 2.5]), "a": ([1], [1]), "b": ([2], [2])}
    assert columns(rows[1:], 50.0)["time"][1].tolist() == [2.5]
    assert columns([]) == {}


def test_a_curve_of_one_value_and_steps_of_any_size_can_be_thinned() -> None:
    x = np.cumsum(np.random.default_rng(0).integers(1, 1000, 3000)).astype(float)
    kept, values = thinned(x, np.zeros(3000), 100)
    assert len(kept) == 100
    assert not values.any()
    told = packed(x, np.zeros(3000), 100)
    assert np.cumsum(told["x"]) == pytest.approx(kept)
