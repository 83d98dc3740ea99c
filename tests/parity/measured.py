"""What the comparison with transformers measured: measured.json, from which docs/models.md has its tables.

OMP_NUM_THREADS=1 python -m pytest tests/parity/test_parity.py --measured && python scripts/write_docs.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from oracle import Case

FILE = Path(__file__).parent / "measured.json"


class Measured:
    """The largest differences of one run of the cases, by the case's name: absolute of outputs, relative of gradients.

    A case whose head has no loss in transformers has no gradients.
    """

    def __init__(self) -> None:
        self.outputs: dict[str, float] = {}
        self.gradients: dict[str, float] = {}

    def write(self, cases: Sequence[Case]) -> None:
        """Write measured.json. Cases that failed or were left out of this run are not in it."""
        rows = [
            {
                "family": case.family,
                "variant": case.variant,
                "outputs": float(f"{self.outputs[case.name]:.1e}"),
                "within": case.within,
                "gradients": float(f"{self.gradients[case.name]:.1e}") if case.name in self.gradients else None,
            }
            for case in cases
            if case.name in self.outputs
        ]
        FILE.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")
