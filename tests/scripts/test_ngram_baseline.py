from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from types import ModuleType

import pytest

SCRIPT = "ngram_baseline.py"
TRAIN = [b"to be or not to be, that is the question", b"whether tis nobler in the mind", b"to"]
HELD_OUT = [b"to suffer the slings", b"\xc3\xa9 be"]


def _by_hand(order: int) -> float:
    """Witten-Bell, byte by byte."""
    counts: list[dict[bytes, Counter[int]]] = [defaultdict(Counter) for _ in range(order + 1)]
    for text in TRAIN:
        text = b"\0" * order + text
        for place in range(order, len(text)):
            for k in range(order + 1):
                counts[k][text[place - k : place]][text[place]] += 1
    bits, size = 0.0, 0
    for text in HELD_OUT:
        text = b"\0" * order + text
        for place in range(order, len(text)):
            p = 1 / 256
            for k in range(order + 1):
                if after := counts[k].get(text[place - k : place]):
                    p = (after[text[place]] + len(after) * p) / (after.total() + len(after))
            bits, size = bits - math.log2(p), size + 1
    return bits / size


@pytest.mark.parametrize("order", [0, 1, 3, 5])
def test_bits_per_byte_equal_a_count_by_hand(script: ModuleType, order: int) -> None:
    assert script.bits_per_byte(TRAIN, HELD_OUT, [order])[order] == pytest.approx(_by_hand(order), rel=1e-12)


def test_the_table_of_the_default_text(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ngram_baseline.py"])
    script.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if row[0] in "035" and row[-1] != "s"] == [
        ["0", "4.818"],
        ["3", "2.325"],
        ["5", "2.025"],
    ]
