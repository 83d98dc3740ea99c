"""Axes and grids."""

from __future__ import annotations

import pytest

from mlplatform.errors import SpecError
from mlplatform.runs.sweeps.space import Interval, Values, differences, grid, read, written

SPACE = {"a": Values(("1", "2")), "b": Interval(0.1, 1.0, log=True), "c": Interval(1, 8, whole=True)}


def test_a_space_is_read_as_it_was_written() -> None:
    assert read(written(SPACE)) == SPACE


def test_the_last_axis_of_a_grid_changes_fastest() -> None:
    points = grid({"a": Values(("1", "2")), "b": Values(("x", "y", "z"))})
    assert [(p["a"], p["b"]) for p in points] == [(a, b) for a in "12" for b in "xyz"]


def test_an_interval_has_no_grid() -> None:
    with pytest.raises(SpecError, match=r"sweep\.search: b, c is an interval, and a grid needs values.*sweep=tpe"):
        grid(SPACE)


def test_what_differs_between_two_spaces_is_named() -> None:
    other = {**SPACE, "a": Values(("1", "3")), "d": Values(("9",))}
    assert differences(written(SPACE), written(other)) == [
        "a: {1, 2} before, {1, 3} now",
        "d: not there before, {9} now",
    ]
    assert differences(written(SPACE), written(SPACE)) == []


def test_ends_are_what_is_checked_first() -> None:
    assert [axis.ends() for axis in SPACE.values()] == [("1", "2"), ["0.1", "1.0"], ["1", "8"]]
