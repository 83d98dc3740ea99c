from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlplatform import places
from mlplatform.data import sources
from mlplatform.data.sources import JSONLines, Parquet, TextFiles
from mlplatform.errors import SpecError
from mlplatform.registry import Spec

TEXT = "Title\n\nACT I\n\nSCENE I. One.\nwords\n\n\nACT II\n\nSCENE II. Two.\nmore words\n\n\n\nSCENE III.\nend\n"
SCENES = ["SCENE I. One.\nwords", "SCENE II. Two.\nmore words", "SCENE III.\nend\n"]
SEPARATOR = r"(?:\A[^\n]+)?\s+(?:ACT [IVX]+\s+)?(?=SCENE )"


@pytest.mark.parametrize("block", [1, 3, 10, 1000])
@pytest.mark.parametrize("margin", [40, 4096])
@pytest.mark.parametrize("before", [0, 3])
def test_documents_do_not_depend_on_how_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, margin: int, before: int
) -> None:
    path = tmp_path / "play.txt"
    path.write_text(TEXT + "\n\nSCENE IV.\nlast" * before)
    monkeypatch.setattr(sources, "MARGIN", margin)
    monkeypatch.setattr(sources, "text_blocks", lambda file: _in_blocks(file.read_text(), block))
    source = TextFiles(path=str(path), document_separator=SEPARATOR, validation=0.0)
    found = [document.text for document in source.documents()]
    ends = ["SCENE III.\nend", *["SCENE IV.\nlast"] * before] if before else SCENES[2:]
    assert found == [*SCENES[:2], *ends]


def _in_blocks(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def test_the_default_text_is_cut_into_scenes() -> None:
    source = Spec.of(_conf("data/shakespeare.yaml"), "data").build()
    documents = list(source.documents())
    assert len(documents) == 765
    assert all(document.text.startswith("SCENE ") for document in documents)
    held_out = sum(len(d.text) for d in documents if d.validation) / sum(len(d.text) for d in documents)
    assert 0.08 < held_out < 0.12
    assert source.fingerprint() == Spec.of(_conf("data/shakespeare.yaml"), "data").build().fingerprint()


def test_without_a_separator_a_file_is_a_document(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"text {name}\n\n\n")
    source = TextFiles(path=str(tmp_path), validation=0.0)
    assert [d.text for d in source.documents()] == ["text a\n\n\n", "text b\n\n\n", "text c\n\n\n"]


def test_all_kinds_read_the_same_documents(tmp_path: Path, scenes: list[str]) -> None:
    rows = [{"id": number, "text": text} for number, text in enumerate(scenes)]
    packed = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(packed))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=7)
    (tmp_path / "a.txt").write_text("\n=====\n".join(scenes), newline="")
    read = [
        JSONLines(path=str(tmp_path / "a.jsonl.gz")),
        Parquet(path=str(tmp_path / "a.parquet")),
        TextFiles(path=str(tmp_path / "a.txt"), document_separator="\n=====\n"),
    ]
    expected = list(read[0].documents())
    assert [d.text for d in expected] == scenes
    assert {d.validation for d in expected} == {True, False}
    for source in read[1:]:
        assert list(source.documents()) == expected


def test_validation_files_are_held_out_whole(write_rows: Callable[..., Path]) -> None:
    train, held = write_rows(["one", "two"]), write_rows(["three", "four"], "held.jsonl")
    source = JSONLines(path=str(train), validation=str(held))
    assert [(d.text, d.validation) for d in source.documents()] == [
        ("one", False),
        ("two", False),
        ("three", True),
        ("four", True),
    ]
    assert list(source.train_texts()) == ["one", "two"]


def test_which_split_a_document_is_in_depends_on_its_text_alone(
    write_rows: Callable[..., Path], scenes: list[str]
) -> None:
    forward = JSONLines(path=str(write_rows(scenes)))
    backward = JSONLines(path=str(write_rows([*reversed(scenes), "another"], "back.jsonl")))
    assert {d for d in backward.documents() if d.text != "another"} == set(forward.documents())


def test_the_fingerprint_follows_bytes_and_options_not_names(write_rows: Callable[..., Path]) -> None:
    one, same, other = write_rows(["a", "b"]), write_rows(["a", "b"], "n.jsonl"), write_rows(["a", "c"], "o.jsonl")
    first = JSONLines(path=str(one)).fingerprint()
    assert JSONLines(path=str(same)).fingerprint() == first
    changed = [
        JSONLines(path=str(other)),
        JSONLines(path=str(one), validation=0.3),
        JSONLines(path=str(one), on_bad_row="skip"),
        JSONLines(path=str(one), field="body"),
        JSONLines(path=str(one), validation=str(same)),
        JSONLines(path=[str(one), str(other)]),
    ]
    assert len({first, *(source.fingerprint() for source in changed)}) == 7


def test_a_broken_separator_names_its_path() -> None:
    spec = Spec.of(
        {"kind": "text", "path": "shipped:shakespeare_38plays.txt.gz", "document_separator": "("}, "data", "data"
    )
    with pytest.raises(SpecError, match=r"^data: document_separator='\(' is no regular expression"):
        spec.build()


def _conf(name: str) -> dict[str, object]:
    import yaml

    return yaml.safe_load((places.conf() / name).read_text())
