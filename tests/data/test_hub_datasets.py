"""Data sets of the library `datasets`: folders it reads offline, what `save_to_disk` wrote, and names out of reach."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mlplatform.data.collate import NextToken
from mlplatform.data.fields import Class, Picture, Tags, Words
from mlplatform.data.material import documents
from mlplatform.data.module import DataModule
from mlplatform.data.records import Reads
from mlplatform.errors import DataError
from mlplatform.processors.tokenizer import Tokenizer
from mlplatform.registry import Spec

READS = Reads({"text": Words(), "label": Class()})
NAMES = ["good", "bad", "odd"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository's folder with JSON Lines to train on and Parquet to test on, without a script."""
    folder = tmp_path / "reviews"
    for config, mark in (("film", "f"), ("book", "b")):
        (folder / config).mkdir(parents=True)
        rows = [{"text": f"{mark} {n}", "label": n % 3} for n in range(60)]
        lines = [json.dumps(row) + "\n" for row in rows[:50]]
        (folder / config / "train.jsonl").write_text("".join(lines))
        (folder / config / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[50:]))
    configs = [
        f"- config_name: {name}\n  data_files:\n  - {{split: train, path: {name}/train.jsonl}}\n"
        f"  - {{split: test, path: {name}/test.jsonl}}\n"
        for name in ("film", "book")
    ]
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n")
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Named classes, alone and in lists, and pictures, as `save_to_disk` writes them."""
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=NAMES),
            "tags": datasets.List(datasets.ClassLabel(names=["x", "y"])),
            "image": datasets.Image(),
        }
    )
    path = tmp_path / "dot.png"
    Image.fromarray(np.full((4, 5, 3), 200, np.uint8)).save(path)
    rows = {
        "text": [f"text {n}" for n in range(40)],
        "label": [n % 3 for n in range(40)],
        "tags": [[n % 2, 1] for n in range(40)],
        "image": [{"path": None, "bytes": path.read_bytes()}] * 40,
    }
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole, "dev": whole.select(range(9))}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def built(**said: Any) -> Any:
    return Spec.of(said, "data", "data").build()


def told(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_read_as_records(folder: Path) -> None:
    source = built(kind="hf_dataset", path=str(folder), config="film", test="test", validation=0.2)
    opened = source.open(READS)
    texts = {split: [record["text"] for record in records] for split, records in opened.splits.items()}
    assert sorted(texts["train"] + texts["validation"]) == sorted(f"f {n}" for n in range(50))
    assert texts["test"] == [f"f {n}" for n in range(50, 60)]
    assert 3 < len(texts["validation"]) < 20
    assert opened.classes == {"label": ("0", "1", "2")}
    assert opened.splits["test"][2].place == f"{folder}, film: test: row 3"
    copy = pickle.loads(pickle.dumps(opened.splits["train"]))
    assert copy[:] == opened.splits["train"][:]
    rows = [record.columns for record in opened.splits["train"]]
    alone = built(kind="json_rows", path=str(folder / "film" / "train.jsonl"), validation=0.2).open(READS)
    assert rows == [record.columns for record in alone.splits["train"]], "the same splits as without the library"


def test_names_of_classes_lists_and_pictures_come_as_they_were_saved(saved: Path) -> None:
    reads = Reads({"text": Words(), "label": Class(), "tags": Tags(), "image": Picture()})
    opened = built(kind="hf_dataset", path=str(saved), validation="dev").open(reads)
    assert opened.classes == {"label": tuple(NAMES), "tags": ("x", "y")}, "in their own order"
    record = opened.splits["train"][5]
    assert (record["text"], record["label"], record["tags"]) == ("text 5", "odd", ["y", "y"])
    assert record["image"].size == (5, 4)
    assert len(opened.splits["validation"]) == 9


def test_the_data_lie_in_files_and_a_change_of_them_is_told_by_the_fingerprint(saved: Path) -> None:
    def source(split: str = "train") -> Any:
        return built(kind="hf_dataset", path=str(saved), split=split, validation=0.0)

    assert source().fingerprint() == source().fingerprint() != source("dev").fingerprint()
    [table] = source().tables()["train"]
    assert [Path(file["filename"]).parent for file in table.rows.cache_files] == [saved / "train"]
    assert len(pickle.dumps(table)) < 5000, "workers get the file's name, not its rows"


def test_documents(folder: Path, bpe: Tokenizer, scenes: list[str]) -> None:
    pq.write_table(pa.table({"content": scenes[:30]}), folder / "train.parquet")
    pq.write_table(pa.table({"content": scenes[30:40]}), folder / "validation.parquet")
    (folder / "README.md").unlink()
    for name in ("film", "book"):
        for file in (folder / name).iterdir():
            file.unlink()
    source = built(kind="hf_documents", path=str(folder), field="content", validation="validation")
    found = list(source.documents())
    assert [d.text for d in found] == scenes[:40]
    assert [d.validation for d in found] == [False] * 30 + [True] * 10
    part = built(kind="hf_documents", path=str(folder), field="content", split="train[10:20]", validation=0.3)
    assert [d.text for d in part.documents()] == scenes[10:20]
    assert part.fingerprint() != source.fingerprint()
    shape = Spec.of({"kind": "rows", "length": 32, "sequences": 4}, "batch", "batch")
    module = DataModule(documents(source, bpe), shape, NextToken(bpe.filler), 0, 0, 1)
    [first] = islice(module.train_dataloader(), 1)
    assert first[0]["input_ids"].shape == (4, 32)
    assert module.record()["train"]["documents"] == 30


def test_a_bad_row_is_told_or_left_out(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["one", "", "three", None, "five"]})
    rows.save_to_disk(tmp_path / "rows")
    said = {"kind": "hf_documents", "path": str(tmp_path / "rows"), "validation": 0.0}
    message = told(lambda: list(built(**said).documents()))
    assert message.startswith(f"{tmp_path}/rows: train: row 2: field 'text' has no text in it; mend it")
    source = built(**said, on_bad_row="skip")
    assert [d.text for d in source.documents()] == ["one", "three", "five"]
    assert source.skipped == {f"{tmp_path}/rows: train": 2}


def test_what_can_not_be_found_is_one_line(folder: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(kind: str = "hf_dataset", **said: Any) -> str:
        return told(lambda: built(kind=kind, **said))

    assert "Couldn't reach 'some/reviews' on the Hub" in of(path="some/reviews")
    assert "without a network, give data.path a folder" in of(path="some/reviews")
    assert "Should be one of ['train', 'test']" in of(path=str(folder), config="film", validation="dev")
    assert of(path=str(folder), config="film", validation="dev").startswith("data.validation=dev of")
    assert "BuilderConfig 'films' not found. Available: ['film', 'book']" in of(path=str(folder), config="films")
    assert "has no split 'trian' (did you mean 'train'?); it has" in of(path=str(saved), split="trian")
    said = of("hf_documents", path=str(saved), field="txt")
    assert "train: no column 'txt' (did you mean 'text'?); it has" in said
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert of(path=str(folder)).endswith("install it with: pip install 'mlplatform[datasets]'")


def test_a_script_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "scripts are no longer supported" in told(lambda: built(kind="hf_dataset", path=str(folder)))
    assert not (tmp_path / "ran").exists()
