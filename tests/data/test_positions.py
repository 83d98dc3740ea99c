"""A loader goes on exactly where it was, for every kind of source and of batch, with other ranks and workers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from mlplatform.data.collate import Batch, NextToken, Row
from mlplatform.data.examples import stacked, token_arrays
from mlplatform.data.fields import Sound, Words
from mlplatform.data.material import RecordMaterial, documents
from mlplatform.data.mixture import holds_records
from mlplatform.data.module import DataModule
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Reads, Record
from mlplatform.data.sound import read
from mlplatform.processors.tokenizer import Tokenizer
from mlplatform.registry import Spec

BATCHES: dict[str, dict[str, Any]] = {
    "packed": {"kind": "rows", "sequences": 8, "micro": 3},
    "padded": {"kind": "rows", "sequences": 8, "micro": 3, "layout": "padded"},
    "grouped": {"kind": "grouped", "sequences": 8, "micro": 2, "window": 3},
    "budget": {"kind": "budget", "tokens": 192, "micro_batches": 4, "window": 40},
}
DOCUMENTS = ["text", "jsonl", "parquet", "mixture_of_documents"]
RECORDS = ["csv", "json_rows", "parquet_rows", "recordings", "mixture_of_records"]
STEPS, BEFORE = 24, 7


class Tokens:
    """The tokens of a text, with a number drawn at random in training."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        row = token_arrays(self.tokenizer.cut(record["text"], None, 48), segments=False)
        return {**row, "drawn": np.asarray(0 if random is None else random.integers(1 << 30))}

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {"input_ids": -1})


class Waves:
    """Every hundredth sample of a recording."""

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        return {"input_values": read(record["audio"])[0][::100]}

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {"input_values": -9.0})


def source_of(kind: str, folder: Path, scenes: list[str]) -> dict[str, Any]:
    """Write the data of a kind, and return its spec."""
    rows: list[dict[str, Any]] = [{"text": text[: 5 + 37 * number % 300]} for number, text in enumerate(scenes)]
    path = folder / kind
    if kind.startswith("mixture"):
        names = ["text", "jsonl", "parquet"] if kind.endswith("documents") else ["csv", "parquet_rows"]
        parts = {name: source_of(name, folder, scenes[start::3]) for start, name in enumerate(names)}
        weights = dict(zip(names, (0.5, 0.3, 0.2), strict=False))
        return {"kind": "mixture", "parts": parts, "weights": weights}
    if kind == "text":
        path = path.with_suffix(".txt")
        path.write_text("\n\n===\n\n".join(scenes), encoding="utf-8")
        return {"kind": kind, "path": str(path), "document_separator": "\n\n===\n\n", "validation": 0.0}
    if kind == "recordings":
        for number, row in enumerate(rows):
            row["audio"] = f"{number}.wav"
            tone = np.sin(np.arange(800 + 613 * number % 12_000) * 0.01 * (1 + number))
            soundfile.write(folder / row["audio"], 0.5 * tone, 8000)
    if kind == "csv":
        path = path.with_suffix(".csv")
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["text"], *([row["text"]] for row in rows)])
    elif "parquet" in kind:
        path = path.with_suffix(".parquet")
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)
    else:
        path = path.with_suffix(".jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "json_rows" if kind == "recordings" else kind, "path": str(path), "validation": 0.0}


@pytest.fixture
def build(tmp_path: Path, scenes: list[str], bpe: Tokenizer) -> Callable[..., Callable[..., list[DataModule]]]:
    """Return what builds the data modules of so many ranks over a kind of source and a kind of batch."""

    def of(kind: str, batch: str) -> Callable[..., list[DataModule]]:
        said = source_of(kind, tmp_path, scenes)
        reads = Reads({"audio": Sound()} if kind == "recordings" else {"text": Words()})

        def modules(world: int, workers: int) -> list[DataModule]:
            shape = Spec.of({**BATCHES[batch], "length": 48, "workers": workers}, "batch", "batch")
            spec = Spec.of(said, "data", "data")
            source, made = spec.build(), []
            for rank in range(world):
                if holds_records(spec):
                    examples = Waves() if kind == "recordings" else Tokens(bpe)
                    material, collator = RecordMaterial(source, source.open(reads)), examples
                else:
                    material, collator = documents(source, bpe), NextToken(-1)
                made.append(DataModule(material, shape, collator, 3, rank, world))
            return made

        return modules

    return of


def taken(modules: list[DataModule], count: int) -> list[list[Any]]:
    """Return the rows of each global batch without their padding, ranks in order."""
    ranks = [list(islice(iter(module.train_dataloader()), count)) for module in modules]
    return [[row for rank in ranks for micro in rank[step] for row in unpadded(micro)] for step in range(count)]


def unpadded(batch: Batch) -> list[tuple[Any, ...]]:
    rows = next(iter(batch.values()))
    kept = [[x for x in row if x not in (-1, -9)] for row in rows.tolist()]
    return list(zip(kept, batch["drawn"].tolist() if "drawn" in batch else [0] * len(kept), strict=True))


@pytest.mark.parametrize("batch", list(BATCHES))
@pytest.mark.parametrize("kind", [*DOCUMENTS, *RECORDS])
def test_a_loader_goes_on_exactly(kind: str, batch: str, build: Callable[..., Any]) -> None:
    if batch == "packed" and kind in RECORDS:
        pytest.skip("records have no layout")
    modules = build(kind, batch)
    expected = taken(modules(1, 0), STEPS)
    first = modules(2, 1 if kind == "mixture_of_records" else 0)
    before = taken(first, BEFORE)
    [state, other] = [module.state_dict() for module in first]
    assert state == other == {"consumed": sum(map(len, before))}
    after = modules(1, 2 if batch == "budget" else 1)
    after[0].load_state_dict(json.loads(json.dumps(state)))
    assert len({str(step) for step in expected}) == STEPS
    if kind == "recordings" and batch == "budget":
        assert len({len(step) for step in expected}) > 3
    assert before + taken(after, STEPS - BEFORE) == expected
    epochs = state["consumed"] / modules(1, 0)[0].samples_per_epoch
    assert epochs != int(epochs), "this was the middle of an epoch"
