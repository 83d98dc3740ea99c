"""Which share of the positions of a batch is padding: documents packed, each in rows of its own, and by length.

    python benchmarks/packing.py [--vocab 2048]

On Shakespeare's scenes, on corrected Ukrainian sentences and on docstrings (both fetched before). Under 2% of packed
positions are padding, or the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from mlplatform.cli.compose import compose
from mlplatform.data.order import Shuffled
from mlplatform.data.packing import Packed, rows
from mlplatform.data.plan import Plan
from mlplatform.data.tokens import Tokens, tokenised
from mlplatform.registry import Spec

MOST = 0.02
STEPS = 200
TEXTS = {
    "Shakespeare": ["data=shakespeare"],
    "ua_gec": ["data=jsonl", "data.path=fetched:ua_gec/train.jsonl", "data.field=chosen", "data.validation=0"],
    "docstrings": ["data=jsonl", "data.path=fetched:docstrings/train.jsonl", "data.field=source", "data.validation=0"],
}
BATCHES = {
    "padded": {"kind": "rows", "layout": "padded"},
    "grouped": {"kind": "grouped"},
    "budget": {"kind": "budget", "tokens": 2048},
}


def packed_waste(tokens: Tokens, length: int) -> float:
    """Return the share of all positions of an epoch of packed rows that hold no token: read, not worked out."""
    split = Packed(tokens, length, 1, 0)
    used = sum(int((split.row(number, 0, 0)["document_ids"] > 0).sum()) for number in range(len(split)))
    return 1 - used / (len(split) * length)


def padded_waste(tokens: Tokens, length: int, batch: dict[str, object]) -> float:
    """Return the share of the positions of some steps' micro-batches that is padding."""
    split = rows(tokens, "padded", length, 1, 0)
    shape = Spec.of({"length": length, **batch}, "batch", "batch").build()
    plan: Plan = shape.plan(Shuffled(len(split), 0), split, 0)
    position, used, there = 0, 0, 0
    for _ in range(STEPS):
        step = plan.step(position, 0, 1)
        for micro in step.batches:
            lengths = split.lengths(np.asarray([sample.number for sample in micro]))
            used, there = used + int(lengths.sum()), there + len(lengths) * int(lengths.max())
        position = step.after
    return 1 - used / there


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=2048)
    vocab = parser.parse_args().vocab
    worst = 0.0
    print(f"| text | length | packed | {' | '.join(BATCHES)} |\n|---|--:|--:|{'--:|' * len(BATCHES)}")
    for name, overrides in TEXTS.items():
        config = compose("train", [*overrides, f"tokenizer.vocab={vocab}"]).check().config
        source = Spec.of(config["data"], "data", "data").build()
        tokens = tokenised(source, Spec.of(config["tokenizer"], "tokenizer", "tokenizer").build(corpus=source)).train
        for length in (128, 256, 1024):
            waste = packed_waste(tokens, length)
            others = [padded_waste(tokens, length, batch) for batch in BATCHES.values()]
            print(f"| {name} | {length} | {waste:.3%} | {' | '.join(f'{one:.1%}' for one in others)} |", flush=True)
            worst = max(worst, waste)
    print(f"\npacked, at most {worst:.3%}: {'under' if worst < MOST else 'NOT under'} {MOST:.0%}")
    return int(worst >= MOST)


if __name__ == "__main__":
    sys.exit(main())
