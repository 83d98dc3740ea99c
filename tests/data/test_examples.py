"""Rows made of records, and the loader over them: alike for any ranks and workers, and exact when it goes on."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlplatform.data.collate import Batch, Row
from mlplatform.data.examples import RecordRows, Tools, stacked
from mlplatform.data.fields import Words
from mlplatform.data.material import RecordMaterial
from mlplatform.data.module import DataModule
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Reads, Record
from mlplatform.errors import DataError
from mlplatform.registry import Spec


class Letters:
    """The characters of a text as numbers, and a number drawn at random in training."""

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        if record["text"] == "text 7 cannot be used":
            raise DataError(f"{record.place}: it can't be used")
        drawn = 0 if random is None else int(random.integers(1, 1 << 30))
        return {
            "input_ids": np.frombuffer(record["text"].encode(), np.uint8).astype(np.int64),
            "drawn": np.asarray(drawn),
        }

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {"input_ids": 0})


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., DataModule]:
    """Build the data module of one rank over 60 records; keywords change the batch."""

    def build(rank: int = 0, world: int = 1, workers: int = 0, bad: bool = False) -> DataModule:
        rows = [f"text {n} {'x' * (n % 5)}" for n in range(60)]
        if bad:
            rows[7] = "text 7 cannot be used"
        if not (tmp_path / "rows.jsonl").exists():  # a file that is written again has changed for who reads it
            (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
        said = {"kind": "json_rows", "path": str(tmp_path / "rows.jsonl"), "validation": 0.0 if bad else 0.2}
        source = Spec.of(said, "data", "data").build()
        shape = Spec.of({"kind": "rows", "sequences": 8, "micro": 3, "workers": workers}, "batch", "batch")
        material = RecordMaterial(source, source.open(Reads({"text": Words()})))
        return DataModule(material, shape, Letters(), 3, rank, world)

    return build


Make = Callable[..., DataModule]


def taken(modules: list[DataModule], count: int) -> list[list[tuple[list[int], int]]]:
    """Return (characters, number drawn) of each row of each global batch, ranks in order."""
    ranks = [list(islice(iter(module.train_dataloader()), count)) for module in modules]
    return [
        [
            ([i for i in ids if i], drawn)
            for rank in ranks
            for micro in rank[step]
            for ids, drawn in zip(micro["input_ids"].tolist(), micro["drawn"].tolist(), strict=True)
        ]
        for step in range(count)
    ]


@pytest.mark.parametrize(("before", "after"), [((1, 2), (1, 0)), ((2, 0), (4, 0)), ((4, 0), (2, 1))])
def test_going_on_in_an_epoch_is_exact_for_other_ranks_and_workers(
    make: Make, before: tuple[int, int], after: tuple[int, int]
) -> None:
    expected = taken([make()], 9)  # into the second epoch
    first = [make(rank, before[0], before[1]) for rank in range(before[0])]
    got = taken(first, 4)
    second = [make(rank, after[0], after[1]) for rank in range(after[0])]
    for module in second:
        module.load_state_dict(first[0].state_dict())
    assert got + taken(second, 5) == expected


def test_what_is_drawn_changes_with_the_epoch_and_never_in_validation(make: Make) -> None:
    module = make()
    rows = module.train_rows
    assert rows.row(0, 3, 0)["drawn"] == rows.row(0, 3, 0)["drawn"]
    assert len({int(rows.row(n, seed, epoch)["drawn"]) for n in (0, 1) for seed in (3, 4) for epoch in (0, 1)}) == 8
    held_out: Any = module.val_dataloader()
    assert all((batch["drawn"] == 0).all() for batch in held_out)
    assert [n for batch in held_out for n in batch["numbers"].tolist()] == list(range(len(module.validation_rows)))


def test_rows_go_to_another_process(make: Make) -> None:
    rows = make().train_rows
    assert isinstance(rows, RecordRows)
    copy = pickle.loads(pickle.dumps(rows))
    assert all(copy.row(n, 3, 1)["drawn"] == rows.row(n, 3, 1)["drawn"] for n in range(len(rows)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_row_that_cannot_be_used_is_one_line_also_from_a_worker(
    make: Make, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(workers=workers, bad=True)
    monkeypatch.setattr(DataModule, "first_rows", lambda self, count: {})
    with pytest.raises(DataError) as caught:
        taken([module], 8)
    assert str(caught.value) == f"{tmp_path}/rows.jsonl: line 8: it can't be used"


def _row(**arrays: Any) -> Row:
    return Row({name: np.asarray(array) for name, array in arrays.items()}, 0, 0, 0)


def test_rows_are_padded_where_they_may_be() -> None:
    batch = stacked([_row(input_ids=[5, 6, 7], labels=[1, 2, 3]), _row(input_ids=[8], labels=[4])], {"input_ids": 9})
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]


def test_no_key_is_dropped_and_nothing_is_padded_unasked() -> None:
    with pytest.raises(DataError, match=r"differ in their keys: \['a', 'b'\]"):
        stacked([_row(a=[1], b=[2]), _row(a=[1])], {})
    with pytest.raises(DataError, match=r"have a of several shapes, \[\(1,\), \(2,\)\]"):
        stacked([_row(a=[1]), _row(a=[1, 2])], {})


def test_a_tool_the_run_lacks_is_told() -> None:
    with pytest.raises(DataError, match="task=any needs a tokenizer, and the run has none; choose one"):
        Tools().need("tokenizer", "any")


def test_lengths_of_rows_are_measured_once_and_kept(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make().train_rows
    numbers = np.arange(len(rows))
    lengths = rows.lengths(numbers)
    assert lengths.tolist() == [len(rows.row(number, 0, 0)["input_ids"]) for number in numbers]
    assert len(set(lengths)) > 3
    again = make().train_rows
    monkeypatch.setattr(Letters, "row", lambda *_: pytest.fail("a row was made again"))
    assert again.lengths(numbers[::-1]).tolist() == lengths[::-1].tolist()
    assert "index" not in pickle.loads(pickle.dumps(again)).__dict__
