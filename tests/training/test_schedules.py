"""Schedules against their closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mlplatform.errors import SpecError
from mlplatform.registry import Spec
from mlplatform.training.intervals import Length


def rates(kind: str, whole: str = "100 steps", **fields: Any) -> list[float]:
    """Return the factor of each step of a run of 100 steps."""
    spec = Spec.of({"kind": kind, **fields}, "schedule", "schedule")
    factor = spec.build().bind(Length.parse(whole), 50.0)
    return [factor(step, step + 1) for step in range(100)]


def cosine(done: float, floor: float) -> float:
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear", "wsd"])
def test_warmup_is_a_line_that_starts_above_zero_and_reaches_one(kind: str) -> None:
    found = rates(kind, warmup="10 steps")
    assert found[:10] == [(step + 1) / 10 for step in range(10)]
    assert found[10] == 1.0  # the first step after warmup is at the peak
    assert found == rates(kind, warmup="10%") == rates(kind, warmup="0.2 epochs")
    assert rates(kind, warmup="0%")[0] == 1.0


def test_cosine() -> None:
    expected = [cosine((step - 10) / 90, 0.1) for step in range(10, 100)]
    assert rates("cosine", warmup="10 steps", floor=0.1)[10:] == pytest.approx(expected, rel=1e-12)


def test_linear() -> None:
    expected = [1 - 0.8 * (step - 20) / 80 for step in range(20, 100)]
    assert rates("linear", warmup="20 steps", floor=0.2)[20:] == pytest.approx(expected, rel=1e-12)
    assert rates("linear", warmup="0%", floor=0.0)[-1] == pytest.approx(0.01)  # the last step still learns


def test_constant() -> None:
    assert set(rates("constant", warmup="5 steps")[5:]) == {1.0}


@pytest.mark.parametrize(("shape", "falls"), [("linear", lambda d: d), ("1-sqrt", math.sqrt)])
def test_warmup_stable_decay(shape: str, falls: Any) -> None:
    found = rates("wsd", warmup="10 steps", decay="20 steps", shape=shape, floor=0.1)
    assert set(found[10:80]) == {1.0}
    expected = [1 - 0.9 * falls((step - 80) / 20) for step in range(80, 100)]
    assert found[80:] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_run_measured_in_tokens_decays_by_tokens() -> None:
    factor = (
        Spec.of({"kind": "linear", "warmup": "100K tokens"}, "schedule").build().bind(Length.parse("1M tokens"), 9.0)
    )
    assert factor(0, 40_000) == pytest.approx(0.4)
    assert factor(80_000, 120_000) == 1.0  # the step in which warmup ends
    assert factor(550_000, 600_000) == pytest.approx(0.5)
    assert factor(2_000_000, 2_100_000) == 0.0  # beyond the end


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"warmup": "200 steps"}, r"schedule\.warmup: '200 steps' and .*decay together would last .*'100 steps'"),
        ({"warmup": "50%", "decay": "60%"}, r"schedule\.warmup: '50%' and schedule\.decay together would last"),
        ({"warmup": "1M tokens"}, r"schedule\.warmup: '1M tokens' is in tokens and trainer\.max='100 steps' in steps"),
        ({"decay": "5 min"}, r"schedule\.decay: '5 min' is in seconds"),
    ],
)
def test_parts_that_do_not_fit(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        rates("wsd", **fields)
