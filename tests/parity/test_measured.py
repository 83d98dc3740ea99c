"""docs/models.md speaks of every case there is, and of no other."""

from __future__ import annotations

import json

from cases import CASES
from measured import FILE

AGAIN = "write it again: python -m pytest tests/parity/test_parity.py --measured"


def test_every_case_was_measured_and_held() -> None:
    rows = json.loads(FILE.read_text(encoding="utf-8"))
    measured = {(row["family"], row["variant"]): row for row in rows}
    assert measured.keys() == {(case.family, case.variant) for case in CASES}, AGAIN
    for case in CASES:
        row = measured[case.family, case.variant]
        assert row["outputs"] <= case.within == row["within"], AGAIN
        assert (row["gradients"] is not None) == case.labels, AGAIN
        assert (row["gradients"] or 0.0) <= 1e-4, AGAIN
