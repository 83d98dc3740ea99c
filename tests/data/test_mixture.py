"""Mixtures: their proportions in what is trained on, what is held out, their classes, and what is wrong with them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlplatform.data.collate import NextToken
from mlplatform.data.fields import Class, Words
from mlplatform.data.material import RecordMaterial, documents
from mlplatform.data.mixture import holds_records
from mlplatform.data.module import DataModule
from mlplatform.data.records import Reads
from mlplatform.errors import DataError, SpecError
from mlplatform.processors.tokenizer import Tokenizer
from mlplatform.registry import Spec

READS = Reads({"text": Words(), "label": Class()})
Parts = dict[str, dict[str, Any]]


def mixture(parts: Parts, weights: dict[str, float]) -> Spec:
    return Spec.of({"kind": "mixture", "parts": parts, "weights": weights}, "data", "data")


@pytest.fixture
def texts(tmp_path: Path) -> Parts:
    """Three kinds of files of documents, each of one letter."""
    for letter, count in (("a", 30), ("b", 90), ("c", 50)):
        rows = [{"text": f"{letter * (3 + n % 9)} {letter}"} for n in range(count)]
        path = tmp_path / letter
        path.with_suffix(".txt").write_text("\n\n".join(row["text"] for row in rows))
        path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"))
    return {
        "plays": {"kind": "text", "path": str(tmp_path / "a.txt"), "document_separator": "\n\n"},
        "web": {"kind": "jsonl", "path": str(tmp_path / "b.jsonl"), "validation": 0.2},
        "books": {"kind": "parquet", "path": str(tmp_path / "c.parquet"), "validation": 0.2},
    }


@pytest.fixture
def labelled(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Write labelled rows as JSON Lines and return their spec."""

    def write(name: str, labels: str, count: int = 40, **said: Any) -> dict[str, Any]:
        path = tmp_path / f"{name}.jsonl"
        rows = [{"text": f"{name} {n}", "label": labels[n % len(labels)]} for n in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"kind": "json_rows", "path": str(path), "validation": 0.2, **said}

    return write


def test_documents_are_trained_on_by_weight_and_all_parts_are_held_out(texts: Parts, bpe: Tokenizer) -> None:
    source = mixture(texts, {"plays": 3, "web": 6, "books": 1}).build()
    shape = Spec.of({"kind": "rows", "sequences": 10, "micro": 10, "length": 16, "layout": "padded"}, "batch", "batch")
    module = DataModule(documents(source, bpe), shape, NextToken(bpe.filler), 0, 0, 1)
    seen: Counter[str] = Counter()
    for [batch] in islice(module.train_dataloader(), 60):
        seen.update(bpe.decode(row)[0] for row in batch["input_ids"].tolist())
    assert seen == {"a": 180, "b": 360, "c": 60}
    held_out = [bpe.decode(row) for batch in module.val_dataloader() for row in batch["input_ids"].tolist()]
    expected = [d.text for part in source.parts.values() for d in part.documents() if d.validation]
    assert held_out == expected
    assert {text[0] for text in held_out} == set("abc")
    record = module.record()
    assert record["weights"] == {"plays": 0.3, "web": 0.6, "books": 0.1}
    assert record["train"]["documents"] == sum(part["train"]["documents"] for part in record["parts"].values())
    assert record["train"]["documents"] + record["validation"]["documents"] == 170


def test_a_tokenizer_learns_from_all_parts_alike(texts: Parts) -> None:
    source = mixture(texts, {"web": 1, "books": 1, "plays": 0}).build()
    first = [text[0] for text in islice(source.train_texts(), 20)]
    assert first == ["b", "c"] * 10
    assert Counter(text[0] for text in source.train_texts()).keys() == {"b", "c"}, "a part of weight 0 is left out"
    other = mixture(texts, {"web": 2, "books": 1, "plays": 0}).build()
    alone = mixture(texts, {"web": 1, "books": 0, "plays": 0}).build()
    assert other.fingerprint() == source.fingerprint() != alone.fingerprint()


def test_records_of_parts_share_their_classes(labelled: Callable[..., dict[str, Any]]) -> None:
    parts = {"one": labelled("one", "xy"), "two": labelled("two", "yz", 60, test=0.1)}
    spec = mixture(parts, {"one": 1, "two": 3})
    assert holds_records(spec)
    source = spec.build()
    opened = source.open(READS)
    assert opened.classes == {"label": ("x", "y", "z")}
    assert opened.untrained == {}
    whole = [record["text"] for records in opened.splits.values() for record in records]
    assert Counter(text.split()[0] for text in whole) == {"one": 40, "two": 60}
    assert {record["text"].split()[0] for record in opened.splits["validation"]} == {"one", "two"}
    alone = Spec.of(parts["two"], "data", "data").build().open(READS)
    first = len(opened.splits["train"]) - len(alone.splits["train"])
    assert opened.splits["train"][first:] == alone.splits["train"][:]
    assert RecordMaterial(source, opened).record()["weights"] == {"one": 0.25, "two": 0.75}


def test_records_with_several_rows_each_keep_the_proportions(labelled: Callable[..., dict[str, Any]]) -> None:
    class Twice:
        def parts(self, record: Any) -> int:
            return 2

    source = mixture({"one": labelled("one", "x"), "two": labelled("two", "x")}, {"one": 1, "two": 4}).build()
    material = RecordMaterial(source, source.open(READS))
    rows: Any = material.splits(None, Twice())["train"]  # type: ignore[arg-type]
    drawn = Counter(rows[sample.number]["text"].split()[0] for sample in material.order(rows, 0).samples(0, 1000))
    assert drawn == {"one": 200, "two": 800}


def test_what_is_wrong_with_the_weights(texts: Parts) -> None:
    for weights, told in (
        ({"plays": 1, "wbe": 1, "books": 1}, "there is no part 'wbe' (did you mean 'web'?); the parts are"),
        ({"plays": 1, "web": 1}, "none for the part 'books'; give each part a number, 0 to leave it out"),
        ({"plays": 0, "web": 0, "books": 0}, "all of them are 0"),
    ):
        with pytest.raises(SpecError) as caught:
            mixture(texts, weights).build()
        assert told in str(caught.value)
    with pytest.raises(SpecError, match=r"data\.weights: \{'web': -1\} is not allowed: it should be greater"):
        mixture(texts, {"web": -1})


def test_what_is_wrong_with_the_parts(
    texts: Parts, labelled: Callable[..., dict[str, Any]], tmp_path: Path, bpe: Tokenizer
) -> None:
    records = labelled("rows", "xy")
    with pytest.raises(SpecError, match="'rows' holds records and 'web' documents"):
        mixture({"web": texts["web"], "rows": records}, {"web": 1, "rows": 1}).build()
    inner = {"kind": "mixture", "parts": {"web": texts["web"]}, "weights": {"web": 1}}
    with pytest.raises(SpecError, match=r"data\.parts\.all: a mixture can't be part of one"):
        holds_records(mixture({"all": inner}, {"all": 1}))

    def opened(parts: Parts) -> None:
        mixture(parts, dict.fromkeys(parts, 1.0)).build().open(READS)

    def one_line(call: Callable[[], object]) -> str:
        with pytest.raises(DataError) as caught:
            call()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "other.jsonl").write_text('{"review": "good", "label": "x"}\n' * 9)
    other = {"kind": "json_rows", "path": str(tmp_path / "other.jsonl"), "validation": 0.0}
    said = one_line(lambda: opened({"rows": records, "other": other}))
    assert said.startswith(f"data.parts.other: {tmp_path}/other.jsonl: line 1: no column 'text'")
    opened({"rows": records, "other": {**other, "fields": {"text": "review"}}})
    (tmp_path / "empty.jsonl").write_text("")
    empty = {"kind": "json_rows", "path": str(tmp_path / "empty.jsonl")}
    assert one_line(lambda: opened({"rows": records, "empty": empty})).startswith("data.parts.empty: empty.jsonl: the")
    gone = {"kind": "json_rows", "path": str(tmp_path / "gone.jsonl")}
    assert one_line(lambda: opened({"rows": records, "gone": gone})).startswith("data.parts.gone: data.path: there is")
    short = {"kind": "jsonl", "path": str(tmp_path / "short.jsonl"), "validation": 0.0}
    (tmp_path / "short.jsonl").write_text('{"text": "hi"}\n')
    source = mixture({"web": texts["web"], "short": short}, {"web": 1, "short": 1}).build()
    shape = Spec.of({"kind": "rows", "length": 64}, "batch", "batch")
    module = DataModule(documents(source, bpe), shape, NextToken(bpe.filler), 0, 0, 1)
    assert one_line(module.setup).startswith("data.parts.short: the data has 4 tokens to train on")
