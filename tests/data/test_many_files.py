"""Many shards, larger together than what is kept of them: memory stays where it was."""

from __future__ import annotations

import json
import tracemalloc
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlplatform.data import row_groups, tables
from mlplatform.data.collate import Batch, NextToken, Row
from mlplatform.data.examples import stacked
from mlplatform.data.fields import Words
from mlplatform.data.material import RecordMaterial, documents
from mlplatform.data.module import DataModule
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Reads, Record
from mlplatform.data.row_groups import RowGroups
from mlplatform.processors.tokenizer import Tokenizer
from mlplatform.registry import Spec

SHARDS, ROWS = 10, 40
LONG = 100_000
"""Bytes of a text: 40 MB of 400 rows, in ten files."""


class Sizes:
    """How long a text is."""

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        return {"input_ids": np.asarray([len(record["text"]), int(record["text"].split(" ", 1)[0])])}

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {"input_ids": 0})


@pytest.fixture(params=["json_rows", "parquet_rows"])
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Write 40 MB in ten shards, and return the spec that names them by a glob."""
    draw = np.random.default_rng(0)
    for shard in range(SHARDS):
        numbers = range(shard * ROWS, (shard + 1) * ROWS)
        texts = [f"{n} " + draw.integers(97, 123, LONG, dtype=np.uint8).tobytes().decode() for n in numbers]
        if request.param == "json_rows":
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (tmp_path / f"part-{shard}.jsonl").write_text(lines)
        else:
            pq.write_table(pa.table({"text": texts}), tmp_path / f"part-{shard}.parquet", row_group_size=8)
    return {"kind": request.param, "path": str(tmp_path / "part-*"), "validation": 0.0}


def test_memory_does_not_grow_with_the_data(shards: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "GROUPS", RowGroups())
    monkeypatch.setattr(row_groups, "BYTES_KEPT", 4_000_000)
    shape = Spec.of({"kind": "rows", "sequences": 4, "micro": 4}, "batch", "batch")
    process = psutil.Process()
    tracemalloc.start()
    before = process.memory_info().rss
    source = Spec.of(shards, "data", "data").build()
    module = DataModule(RecordMaterial(source, source.open(Reads({"text": Words()}))), shape, Sizes(), 0, 0, 1)
    seen = [row for step in islice(module.train_dataloader(), 100) for row in step[0]["input_ids"].tolist()]
    _, python = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sorted(number for _, number in seen) == list(range(SHARDS * ROWS))
    assert sum(size for size, _ in seen) > 40_000_000
    assert python < 8_000_000, "objects of Python"
    assert process.memory_info().rss - before < 30_000_000, "and all the rest, Arrow's buffers among it"


def test_tokens_of_many_shards_are_mapped_and_not_loaded(
    tmp_path: Path, bpe: Tokenizer, scenes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlplatform.data import tokens

    monkeypatch.setattr(tokens, "SHARD_TOKENS", 50_000)
    for shard in range(4):
        lines = "".join(json.dumps({"text": f"{shard} {text}"}) + "\n" for text in scenes)
        (tmp_path / f"part-{shard}.jsonl").write_text(lines)
    source = Spec.of({"kind": "jsonl", "path": str(tmp_path / "part-*.jsonl")}, "data", "data").build()
    shape = Spec.of({"kind": "rows", "sequences": 4, "micro": 4, "length": 64}, "batch", "batch")
    module = DataModule(documents(source, bpe), shape, NextToken(bpe.filler), 0, 0, 1)
    steps = list(islice(module.train_dataloader(), 5))
    assert steps[0][0]["input_ids"].shape == (4, 64)
    store = module.material.store
    assert len(store.train.info["shards"]) > 2
    assert all(isinstance(shard, np.memmap) for shard in store.train._shards)
