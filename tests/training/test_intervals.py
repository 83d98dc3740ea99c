"""Lengths with units, and when a multiple of one has passed."""

from __future__ import annotations

import itertools

import pytest

from mlplatform.errors import SpecError
from mlplatform.training.intervals import Clock, Length, every


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("500 steps", 500, "steps"),
        ("1 step", 1, "steps"),
        ("10K steps", 10_000, "steps"),
        ("1.5K steps", 1500, "steps"),
        ("2B tokens", 2 * 10**9, "tokens"),
        ("0.3Mtokens", 300_000, "tokens"),
        ("1T tokens", 10**12, "tokens"),
        ("30 min", 1800, "seconds"),
        ("1.5 h", 5400, "seconds"),
        ("90 s", 90, "seconds"),
        (" 2 hours ", 7200, "seconds"),
        ("0.1 s", 0.1, "seconds"),
        ("1 epochs", 1, "epochs"),
        ("2%", 2, "%"),
        ("0.5 %", 0.5, "%"),
    ],
)
def test_reads_a_length(text: str, amount: float, unit: str) -> None:
    length = Length.parse(text)
    assert (length.amount, length.unit, length.text) == (amount, unit, text.strip())
    assert isinstance(length.amount, int) == (amount == int(amount))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("500", "'500' has no unit"),
        ("10K", "'10K' has no unit"),
        ("5 stps", r"no unit 'stps' \(did you mean 'steps'\?\)"),
        ("3 m", "no unit 'm'"),
        ("2k tokens", "no length of training"),
        ("-3 steps", "no length of training"),
        ("", "no length of training"),
        ("many steps", "no length of training"),
        ("1.5 steps", "not a whole number of steps"),
        ("0.0001K tokens", "not a whole number of tokens"),
    ],
)
def test_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        Length.parse(text)
    assert "\n" not in str(caught.value)


def test_epochs_and_percent_become_steps() -> None:
    whole = Length.parse("3 epochs").resolve(steps_per_epoch=10.4)
    assert (whole.amount, whole.unit) == (32, "steps")  # 31.2 steps: the last one is only begun
    assert Length.parse("25%").resolve(10.4, whole).amount == 8
    assert Length.parse("0.01 epochs").resolve(10.4).amount == 1
    assert Length.parse("50%").resolve(1, Length.parse("5 s")).amount == 2.5
    with pytest.raises(SpecError, match="'2%' of what"):
        Length.parse("2%").resolve(10)


def test_a_part_is_measured_in_the_unit_of_the_whole() -> None:
    whole = Length.parse("2B tokens")
    assert Length.parse("10M tokens").within(whole, 100, "schedule.warmup") == 10**7
    assert Length.parse("1%").within(whole, 100, "schedule.warmup") == 2 * 10**7
    with pytest.raises(SpecError, match=r"schedule\.warmup: '100 steps' is in steps and trainer\.max='2B tokens'"):
        Length.parse("100 steps").within(whole, 100, "schedule.warmup")


def test_passes_each_multiple_once_and_is_reached_at_it() -> None:
    length = Length.parse("100 tokens")
    readings = [Clock(n, 30 * n) for n in range(12)]  # a step is 30 tokens
    passed = [now.steps for before, now in itertools.pairwise(readings) if length.passed(before, now)]
    assert passed == [4, 7, 10]
    assert [length.reached(clock) for clock in readings[:5]] == [False, False, False, False, True]
    big = Clock(5, 1000)
    assert length.passed(readings[1], big)  # several multiples at once count once


@pytest.mark.parametrize("text", ["0 steps", "0%", "0 min"])
def test_every_nothing_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"trainer\.log_every: .* more than nothing; write trainer\.log_every=null"):
        every(text, 10, Length.parse("100 steps"), "trainer.log_every")
    assert every(None, 10, Length.parse("100 steps"), "trainer.log_every") is None
