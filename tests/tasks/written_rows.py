"""Small data sets and models that the tests of written tasks share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlplatform.cli.main import main

T5 = [
    "model=t5_tiny",
    *(f"model.{tower}.{size}" for tower in ("encoder", "decoder") for size in (
        "dim=32", "depth=1", "layer.attention.heads=2", "layer.attention.head_dim=8", "layer.mlp.width=48")),
    "model.decoder.layer.cross.heads=2",
    "model.decoder.layer.cross.head_dim=8",
    "model.encoder.input.vocab=400",
]  # fmt: skip
LLAMA = [
    "model=llama_tiny",
    "model.trunk.dim=32",
    "model.trunk.depth=1",
    "model.trunk.layer.attention.heads=2",
    "model.trunk.layer.attention.kv_heads=1",
    "model.trunk.layer.mlp.width=48",
    "model.trunk.input.vocab=300",
]
RUN = [
    "batch=padded",
    "batch.sequences=4",
    "batch.micro=2",
    "batch.length=32",
    "trainer.accelerator=cpu",
    "trainer.log_every='1 steps'",
    "trainer.validate_every='2 steps'",
    "trainer.checkpoint_every='2 steps'",
]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def train(folder: Path, data: Path, *overrides: str) -> Path:
    """Train by the command line on rows of a file, a quarter held out; return the run's folder."""
    outputs = folder / "outputs"
    before = set(outputs.glob("default/*"))
    options = ["data=json_rows", f"data.path={data}", "data.validation=0.25", f"outputs={outputs}", *RUN, *overrides]
    assert main(["train", *options]) == 0
    (run,) = set(outputs.glob("default/*")) - before
    return run


def curves(run: Path) -> list[dict[str, float]]:
    """Return what a run logged, without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("train/loss", "validation/", "train/grad_norm", "step")
    return [{name: value for name, value in row.items() if name.startswith(kept)} for row in rows]
