"""The baselines: Witten-Bell by hand, and which neighbours a model may look at."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

SCRIPT = "baselines.py"


def test_cross_entropies_are_witten_bells(script: ModuleType) -> None:
    words, random = 7, np.random.default_rng(0)
    train, held_out = ([random.integers(low, words, 60) for low in (0, -1, -1)] for _ in range(2))
    tables: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(3)]
    for label, near, far in zip(*train, strict=True):
        for order, context in enumerate(((), (near,), (near, far))):
            tables[order][context][label] += 1
    sums = [0.0, 0.0, 0.0]
    for label, near, far in zip(*held_out, strict=True):
        p = 1 / words
        for order, context in enumerate(((), (near,), (near, far))):
            if seen := tables[order].get(context):
                p = (seen[label] + len(seen) * p) / (seen.total() + len(seen))
            sums[order] -= math.log(p)
    assert script.cross_entropies(train, held_out, words) == pytest.approx([total / 60 for total in sums])


def told(script: ModuleType, inputs: list[int], labels: list[int]) -> list[list[int]]:
    batch = {"input_ids": torch.tensor([inputs]), "labels": torch.tensor([labels])}
    return [part.tolist() for part in script.neighbours(batch)]


def test_neighbours_are_what_the_model_may_see(script: ModuleType) -> None:
    hidden = told(script, [4, 9, 9, 5], [-100, 7, 8, -100])  # 9 is the mask token
    assert hidden == [[7, 8], [9, 9], [4, 9], [9, 5]]
    next_token = told(script, [4, 7, 8, 5], [-100, 7, 8, 5])
    assert next_token == [[7, 8, 5], [-1, 7, 8], [-1, -1, 7]]
    decoder = told(script, [4, 9, 5, 2, 1], [9, 7, 8, 1])
    assert decoder == [[9, 7, 8, 1], [-1, 9, 7, 8], [-1, -1, 9, 7]]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=bert_tiny", "task=masked_lm", "tokenizer=masked_bpe"],
        ["model=t5_tiny", "task=span_corruption", "tokenizer=sentinel_bpe", "batch=padded", "batch.length=64"],
    ],
    ids=["masked", "written"],
)
def test_a_runs_own_targets(script: ModuleType, overrides: list[str], tmp_path: Path) -> None:
    text = "\n\n".join(
        f"Scene {i}. The {w} said: {w} it is, and {w} it shall be." for i, w in enumerate("abcdefgh" * 9)
    )
    (tmp_path / "plays.txt").write_text(text)
    size = "model.encoder.input.vocab=400" if "model=t5_tiny" in overrides else "model.trunk.input.vocab=400"
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        data = ["data=text", "data.path=plays.txt", "data.document_separator='\\n\\n'", size]
        nats, counted, scored = script.of_run([*overrides, *data])
    finally:
        os.chdir(before)
    assert counted > 5 * scored > 0
    assert math.log(400) > nats[0] > nats[1]
