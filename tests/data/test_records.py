"""Records: what is bad, which split a row belongs to, which classes there are, and what is kept of it."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlplatform.data.fields import Class, Classes, Picture, Words
from mlplatform.data.material import RecordMaterial
from mlplatform.data.records import Reads, RecordSource, Splits, Values
from mlplatform.errors import DataError
from mlplatform.places import cache
from mlplatform.registry import Spec

READS = Reads({"text": Words(), "pair": Words(), "label": Class()}, frozenset({"pair"}))
Rows = list[dict[str, Any]]


def rows_of(count: int, classes: str = "ab") -> Rows:
    """Return rows of a text and one of the classes in turn."""
    return [{"text": f"text {n}", "label": classes[n % len(classes)]} for n in range(count)]


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., RecordSource]:
    """Write rows (or lines) as JSON Lines and return their source; keywords are its options."""

    def make(rows: Rows | list[str], name: str = "rows.jsonl", **options: Any) -> RecordSource:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        return Spec.of({"kind": "json_rows", "path": str(tmp_path / name), **options}, "data", "data").build()

    return make


def told(call: Callable[[], object]) -> str:
    """Return the one line an error says."""
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts(opened: Splits) -> dict[str, list[str]]:
    return {name: [record["text"] for record in records] for name, records in opened.splits.items()}


Make = Callable[..., RecordSource]


def test_a_split_is_a_function_of_the_content_alone(source: Make) -> None:
    rows = rows_of(400)
    first = texts(source(rows, validation=0.2, test=0.1).open(READS))
    assert 40 < len(first["validation"]) < 120
    assert 15 < len(first["test"]) < 75
    assert sorted(text for held in first.values() for text in held) == sorted(row["text"] for row in rows)
    mixed = texts(source(rows[::-1] + rows_of(500)[400:], "other.jsonl", validation=0.2, test=0.1).open(READS))
    for split, held in first.items():
        assert set(held) <= set(mixed[split])
    more = texts(source([{**row, "extra": n} for n, row in enumerate(rows)], validation=0.2, test=0.1).open(READS))
    assert more == first, "columns the task doesn't read move no row"


def test_equal_rows_fall_on_one_side(source: Make) -> None:
    split = texts(source(rows_of(200) * 3, validation=0.3).open(READS))
    assert not set(split["train"]) & set(split["validation"])
    assert all(split["validation"].count(text) == 3 for text in split["validation"])


def test_a_record_has_fields_columns_and_its_place(source: Make, tmp_path: Path) -> None:
    rows = [{"review": f"R{n}", "stars": n % 2, "id": n} for n in range(20)]
    opened = source(
        rows, fields={"text": "low", "label": "stars"}, validation=0.0, steps=[
            {"kind": "template", "column": "low", "text": "{review}"},
            {"kind": "lower", "column": "low"},
            {"kind": "one_of", "column": "id", "values": [3], "inverted": True},
        ],
    ).open(READS)  # fmt: skip
    records = opened.splits["train"]
    assert len(records) == 19
    assert opened.filtered == 1
    assert (records[3].values, records[3].place) == ({"text": "r4", "label": "0"}, f"{tmp_path}/rows.jsonl: line 5")
    assert records[3].columns == {"review": "R4", "stars": 0, "id": 4, "low": "r4"}
    assert records[3].get("pair") is None
    assert [record["text"] for record in records[:2]] == ["r0", "r1"]
    assert opened.classes == {"label": ("0", "1")}
    assert list(opened.train_texts()) == [record["text"] for record in records]


BAD_ROWS: dict[str, tuple[str, str]] = {
    "no column": ('{"txt": "a", "label": "a"}', r"no column 'text' \(did you mean 'txt'\?\); it has txt, label"),
    "blank": ('{"text": " ", "label": "a"}', "'text' has no text in it"),
    "no class": ('{"text": "a", "label": null}', "'label' is null, and the name of a class is needed"),
    "unknown class": ('{"text": "a", "label": "c"}', r"'label' is 'c', and the classes are a, b \(data.classes\)"),
    "bad optional": ('{"text": "a", "pair": 3, "label": "a"}', "'pair' is a number, and a text is needed"),
    "not JSON": ('{"text": "a"', "column 13: not JSON"),
    "half a pair": ('{"text": "a", "label": "\\ud83d"}', "'label' holds half a surrogate pair"),
    "step": ('{"text": "a", "label": "a", "n": 3}', "'n' is a number, and a text is needed"),
}


@pytest.mark.parametrize(("line", "wanted"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_stops_with_its_file_and_line_or_is_left_out_and_counted(
    source: Make, tmp_path: Path, line: str, wanted: str
) -> None:
    rows = [json.dumps({**row, "n": "x"}) for row in rows_of(40)]
    lines = [*rows[:16], line if line.count('"n"') or line[-1] != "}" else line[:-1] + ', "n": "x"}', *rows[16:]]
    options = {"classes": ["a", "b"], "steps": [{"kind": "lower", "column": "n"}]}
    message = told(lambda: source(lines, **options).open(READS))
    assert re.search(rf"^{tmp_path}/rows\.jsonl: line 17: .*{wanted}", message), message
    assert message.endswith("; mend it, or leave bad rows out with data.on_bad_row=skip")
    for _ in range(2):  # also from the cache
        opened = source(lines, on_bad_row="skip", **options).open(READS)
        assert opened.skipped == {f"{tmp_path}/rows.jsonl": 1}
        assert sum(map(len, opened.splits.values())) == 40


def equal(values: Values) -> None:
    if values["text"] == values.get("pair"):
        raise ValueError("'pair' is the text itself")


def test_fields_that_do_not_fit_each_other(source: Make) -> None:
    rows = [*rows_of(20), {"text": "same", "pair": "same", "label": "a"}]
    reads = Reads(READS.fields, READS.optional, equal)
    assert "rows.jsonl: line 21: 'pair' is the text itself; mend it" in told(lambda: source(rows).open(reads))
    assert sum(map(len, source(rows).open(READS).splits.values())) == 21, "another check reads the rows again"


def test_a_damaged_file_a_row_names_is_a_bad_row(source: Make, tmp_path: Path) -> None:
    from PIL import Image

    for n in range(8):
        Image.new("L", (4, 4), n).save(tmp_path / f"{n}.png")
    (tmp_path / "5.png").write_bytes(b"no image")
    (tmp_path / "6.png").unlink()
    rows = [{"image": f"{n}.png"} for n in range(8)]
    reads = Reads({"image": Picture()})
    assert "line 6: " in (message := told(lambda: source(rows, validation=0.0).open(reads)))
    assert "5.png: not a readable image" in message
    opened = source(rows, validation=0.0, on_bad_row="skip").open(reads)
    assert [record["image"].name for record in opened.splits["train"]] == [f"{n}.png" for n in (0, 1, 2, 3, 4, 7)]


def test_a_file_mended_after_it_was_left_out_is_taken_in(source: Make, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "0.png").write_bytes(b"no image")
    Image.new("L", (4, 4), 1).save(tmp_path / "1.png")
    rows, reads = [{"image": f"{n}.png"} for n in range(3)], Reads({"image": Picture()})

    def count() -> int:
        return len(source(rows, validation=0.0, on_bad_row="skip").open(reads).splits["train"])

    assert count() == 1
    Image.new("L", (4, 4), 2).save(tmp_path / "0.png")
    assert count() == 2
    Image.new("L", (4, 4), 3).save(tmp_path / "2.png")
    assert count() == 3


def test_splits_can_be_files_of_their_own(source: Make, tmp_path: Path) -> None:
    source(rows_of(9), "held.jsonl")
    opened = source(rows_of(50), validation=str(tmp_path / "held.jsonl"), test=0.2).open(READS)
    assert len(opened.splits["validation"]) == 9
    assert len(opened.splits["train"]) + len(opened.splits["test"]) == 50
    assert opened.splits["validation"][8].place == f"{tmp_path}/held.jsonl: line 9"


def test_a_file_of_two_splits_is_refused(source: Make, tmp_path: Path) -> None:
    source(rows_of(9), "held.jsonl")
    message = told(lambda: source(rows_of(50), path=str(tmp_path), validation=str(tmp_path / "held.jsonl")))
    assert f"data.validation: {tmp_path}/held.jsonl is also one of the train files; name the files apart" in message


EMPTY: dict[str, tuple[Rows, dict[str, Any], str]] = {
    "validation": (rows_of(3), {"validation": 0.001}, r"the validation split is empty: 3 records in all; give more"),
    "test": (rows_of(3), {"validation": 0.0, "test": 0.001}, r"the test split is empty.*or set data\.test=0"),
    "train": ([], {}, "the train split is empty: 0 records in all; give more records"),
    "all bad": ([{}] * 5, {"on_bad_row": "skip"}, r"0 records in all \(5 bad rows and 0 by the steps were left out\)"),
}


@pytest.mark.parametrize(("rows", "options", "wanted"), EMPTY.values(), ids=EMPTY.keys())
def test_an_empty_split_is_told(source: Make, rows: Rows, options: dict[str, Any], wanted: str) -> None:
    assert re.search(wanted, message := told(lambda: source(rows, **options).open(READS))), message


def test_shares_that_leave_nothing_are_told(source: Make) -> None:
    message = told(lambda: source(rows_of(9), validation=0.6, test=0.4))
    assert message == "data.validation=0.6 and data.test=0.4 leave nothing to train on"


def test_classes_are_those_found_in_the_order_of_their_numbers(source: Make) -> None:
    rows = [{"text": f"text {n}", "label": n % 12} for n in range(200)]
    assert source(rows).open(READS).classes["label"] == tuple(str(n) for n in range(12))
    rows = [{"text": f"text {n}", "label": ["x", "b2", "10"][: n % 4]} for n in range(100)]
    reads = Reads({"text": Words(), "label": Classes()})
    assert source(rows).open(reads).classes["label"] == ("10", "b2", "x")
    named = source(rows, classes=["x", "10", "b2"]).open(reads)
    assert named.classes["label"] == ("x", "10", "b2")


def test_a_class_without_a_record_to_train_on(source: Make, tmp_path: Path) -> None:
    rows, held = rows_of(60), rows_of(30, "abc")
    message = told(lambda: source(rows, classes=["a", "b", "c", "d"]).open(READS))
    assert "rows.jsonl: no record to train on has 'c' as label (2 such classes); give records of it, take it" in message
    source(held, "held.jsonl")
    options: dict[str, Any] = {"validation": str(tmp_path / "held.jsonl")}
    message = told(lambda: source(rows, **options).open(READS))
    assert "no record to train on has 'c' as label, only one of the validation split; give records of it" in message
    opened = source(rows, on_bad_row="skip", **options).open(READS)
    assert opened.classes["label"] == ("a", "b", "c")
    assert opened.untrained == {"label": ["c"]}


def test_fields_the_task_does_not_read_are_told(source: Make) -> None:
    message = told(lambda: source(rows_of(9), fields={"txt": "text"}).open(READS))
    assert "data.fields: the task reads no field 'txt' (did you mean 'text'?); it reads text, pair, label" in message


def test_a_column_of_too_many_values_is_no_class(source: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlplatform.data import records

    monkeypatch.setattr(records, "MOST_CLASSES", 20)
    message = told(lambda: source(rows_of(60), fields={"label": "text"}, validation=0.0).open(READS))
    assert "'label' has more than 20 values so far, so it is no class; name another column in data.fields" in message


def folders() -> list[Path]:
    return [path for path in (cache() / "records").iterdir() if not path.name.startswith(".")]


def test_what_was_found_is_read_once_and_shared(source: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlplatform.data.tables import JSONTable

    before = texts(source(rows_of(50)).open(READS))
    assert len(folders()) == 1
    with monkeypatch.context() as patched:
        patched.setattr(JSONTable, "scan", lambda self: pytest.fail("the rows were read again"))
        assert texts(source(rows_of(50)).open(READS)) == before
    source(rows_of(50), validation=0.3).open(READS)
    source(rows_of(51)).open(READS)
    source(rows_of(51), steps=[{"kind": "lower", "column": "text"}]).open(READS)
    source(rows_of(51)).open(Reads({"text": Words()}))
    assert len(folders()) == 5


@pytest.mark.parametrize("damage", ["cut", "gone", "manifest"])
def test_a_damaged_cache_is_made_again(source: Make, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    before = texts(source(rows_of(50)).open(READS))
    (folder,) = folders()
    path = folder / ("manifest.json" if damage == "manifest" else "train.rows")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:30])
    assert texts(source(rows_of(50)).open(READS)) == before
    assert "the cached rows of rows.jsonl are damaged" in caplog.text


def test_an_interrupted_scan_leaves_nothing_that_is_taken_for_whole(
    source: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlplatform.data.records import Scan

    write = Scan.write

    def stopped(self: Scan, folder: Path) -> None:
        write(self, folder)
        (folder / "manifest.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Scan, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            source(rows_of(50)).open(READS)
    assert folders() == []
    assert sum(map(len, source(rows_of(50)).open(READS).splits.values())) == 50


def test_data_that_change_while_they_are_read_are_told(source: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlplatform.data.records import Scan

    made, write = source(rows_of(50)), Scan.write

    def meanwhile(self: Scan, folder: Path) -> None:
        write(self, folder)
        source(rows_of(60))

    monkeypatch.setattr(Scan, "write", meanwhile)
    assert "the data changed while it was read; start again when it is at rest" in told(lambda: made.open(READS))
    assert folders() == []


def test_data_that_change_during_a_run_are_told_at_their_next_row(source: Make, tmp_path: Path) -> None:
    records = source(rows_of(50), validation=0.0).open(READS).splits["train"]
    assert records[7]["text"] == "text 7"
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text().replace("text 7", "TEXT 7"))
    os.utime(path, (5, 5))  # whatever the clock's grain
    message = told(lambda: records[7])
    assert message == f"{path}: line 8: the file has changed; it was sound when the run began"
    path.unlink()
    assert "line 8: [Errno 2]" in told(lambda: records[7])


def test_records_go_to_another_process(source: Make) -> None:
    opened = source(rows_of(50), steps=[{"kind": "matches", "column": "text", "pattern": "[0-8]$"}]).open(READS)
    for records in opened.splits.values():
        copy = pickle.loads(pickle.dumps(records))
        assert copy[:] == records[:]


def test_digits_come_with_a_package() -> None:
    opened = (
        Spec.of({"kind": "digits", "validation": 0.2}, "data", "data")
        .build()
        .open(Reads({"image": Picture(), "label": Class()}))
    )
    assert sum(map(len, opened.splits.values())) == 1797
    assert opened.classes["label"] == tuple("0123456789")
    assert opened.splits["train"][0]["image"].shape == (8, 8)


def test_rows_left_out_stand_in_the_run_record(source: Make, tmp_path: Path) -> None:
    made = source([*rows_of(40), {"text": "no label"}, {"text": 5, "label": "a"}], on_bad_row="skip")
    record = RecordMaterial(made, made.open(READS)).record()
    assert record["skipped_rows"] == {f"{tmp_path}/rows.jsonl": 2}
    assert sum(record[split]["records"] for split in ("train", "validation", "test")) == 40
