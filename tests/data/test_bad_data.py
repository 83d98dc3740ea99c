"""Bad input of the data floor: each is one line that names the file, the place and the nearest fix."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlplatform.data.collate import NextToken, Row, stack, trained_share
from mlplatform.data.material import DocumentMaterial
from mlplatform.data.module import DataModule
from mlplatform.data.sources import JSONLines, Source
from mlplatform.data.tokens import build_tokenizer
from mlplatform.errors import DataError, PlatformError, SpecError
from mlplatform.processors.tokenizer import Tokenizer
from mlplatform.registry import Spec

GOOD = b'{"text": "good"}\n'
MANY = b"".join(b'{"text": "good %d"}\n' % n for n in range(50))


def _parquet(**columns: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


BAD_FILES = {
    "missing": ("text", "none.txt", None, r"data\.path: there is no file or folder .*none\.txt.*looked from"),
    "near miss": ("text", "bad.tx", None, r"data\.path: .*bad\.tx \(did you mean 'bad\.txt'\?\)"),
    "glob": ("text", "*.tex", None, r"data\.path: no file matches '.*\*\.tex'"),
    "folder without": ("parquet", "", None, r"data\.path: the folder .* has no file that ends in \.parquet"),
    "device": ("text", "/dev/null", None, r"data\.path: /dev/null is neither a file nor a folder"),
    "no such shipped": ("text", "shipped:shakespear.txt.gz", None, r"did you mean 'shakespeare_38plays\.txt\.gz'\?"),
    "empty": ("text", "bad.txt", b"", r"bad\.txt: offset 0: the file is empty"),
    "only a mark": ("text", "bad.txt", b"\xef\xbb\xbf", r"bad\.txt: offset 3: the file is empty"),
    "spaces": ("text", "bad.txt", b" \n\t \n", r"bad\.txt: offset 0 to 5: nothing but white space"),
    "binary": ("text", "bad.txt", b"PK\x03\x04abc\x00", r"bad\.txt: offset 7: a zero byte; this is a binary file"),
    "utf-16": ("text", "bad.txt", "text".encode("utf-16-le"), r"bad\.txt: offset 1: a zero byte.*UTF-16"),
    "latin-1": (
        "text",
        "bad.txt",
        "caf\u00e9 au lait".encode("latin-1"),
        r"bad\.txt: offset 3: byte 0xe9 is not UTF-8.*iconv",
    ),
    "cut character": ("text", "bad.txt", "ab\u20ac".encode()[:-1], r"bad\.txt: offset 2: byte 0xe2 is not UTF-8"),
    "cut gzip": ("text", "bad.txt.gz", gzip.compress(b"text" * 999)[:-20], r"bad\.txt\.gz: a damaged gzip file"),
    "no gzip": ("text", "bad.txt.gz", b"plain text", r"bad\.txt\.gz: a damaged gzip file"),
    "line 17": (
        "jsonl",
        "bad.jsonl",
        GOOD * 16 + b'{"text": "x"\n' + GOOD,
        r"bad\.jsonl: line 17: column \d+: not JSON: .*on_bad_row=skip",
    ),
    "no field": (
        "jsonl",
        "bad.jsonl",
        GOOD + b'{"texts": "x"}\n',
        r"line 2: no field 'text' \(did you mean 'texts'\?\); it has texts",
    ),
    "a number": (
        "jsonl",
        "bad.jsonl",
        GOOD + b'{"text": 3}\n',
        r"line 2: field 'text' is a number, and a text is needed",
    ),
    "a boolean": ("jsonl", "bad.jsonl", b'{"text": true}\n', r"line 1: field 'text' is a boolean"),
    "null": ("jsonl", "bad.jsonl", b'{"text": null}\n', r"line 1: field 'text' is null"),
    "blank": ("jsonl", "bad.jsonl", b'{"text": "  "}\n', r"line 1: field 'text' has no text in it"),
    "an array": ("jsonl", "bad.jsonl", b"[1, 2]\n", r"line 1: the line is a list, and an object is needed"),
    "deep": ("jsonl", "bad.jsonl", b"[" * 100_000 + b"\n", r"line 1: nested too deep"),
    "half a pair": ("jsonl", "bad.jsonl", b'{"text": "\\ud83d"}\n', r"line 1: .*half a surrogate pair"),
    "latin-1 row": ("jsonl", "bad.jsonl", GOOD + b'{"text": "\xe9"}\n', r"line 2: offset 27: byte 0xe9 is not UTF-8"),
    "no rows": ("jsonl", "bad.jsonl", b"\n\n", r"bad\.jsonl: there is no document in it"),
    "no parquet": ("parquet", "bad.parquet", b"PAR1 and no more", r"bad\.parquet: not a readable Parquet file"),
    "cut parquet": (
        "parquet",
        "bad.parquet",
        _parquet(text=["a" * 99])[:-9],
        r"bad\.parquet: not a readable Parquet file",
    ),
    "no column": (
        "parquet",
        "bad.parquet",
        _parquet(txt=["a"]),
        r"no column 'text' \(did you mean 'txt'\?\); it has txt",
    ),
    "numbers": (
        "parquet",
        "bad.parquet",
        _parquet(text=[1, 2]),
        r"column 'text' is of type int64, and a text is needed",
    ),
    "null row": ("parquet", "bad.parquet", _parquet(text=["a", None]), r"row 2: field 'text' is null"),
}


@pytest.mark.parametrize(("kind", "name", "content", "wanted"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_told_in_one_line(
    tmp_path: Path, kind: str, name: str, content: bytes | None, wanted: str
) -> None:
    path = name if name.startswith(("/", "shipped:")) else str(tmp_path / name)
    (tmp_path / "bad.txt").write_text("a neighbour")
    if content is not None:
        Path(path).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(Spec.of({"kind": kind, "path": path, "validation": 0.0}, "data", "data").build().documents())
    assert re.search(wanted, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_skipped_rows_are_counted_even_when_the_cache_is_warm(tmp_path: Path, bpe: Tokenizer) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(MANY + b"broken\n" + b'{"other": 1}\n' + b"\xff\xfe\n" + MANY.replace(b"good", b"well"))
    for _ in range(2):
        source = JSONLines(path=str(path), on_bad_row="skip")
        module = DataModule(DocumentMaterial(source, bpe), _batch(length=16), NextToken(bpe.filler), 0, 0, 1)
        assert module.record()["skipped_rows"] == {str(path): 3}
        assert module.record()["train"]["documents"] + module.record()["validation"]["documents"] == 100


def test_a_file_of_bad_rows_only_says_so(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"bad\n" * 5)
    with pytest.raises(DataError, match=r"rows\.jsonl: there is no document in it; all 5 rows are bad"):
        list(JSONLines(path=str(tmp_path / "rows.jsonl"), on_bad_row="skip").documents())


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_too_little_text_says_how_much_is_needed(write_rows: Callable[..., Path], bpe: Tokenizer, layout: str) -> None:
    source = JSONLines(path=str(write_rows(["few words", "here"])), validation=0.0)
    with pytest.raises(
        DataError, match=r"has \d+ tokens to train on \(13 bytes\), and one sequence takes 256.*batch\.length"
    ):
        DataModule(
            DocumentMaterial(source, bpe), _batch(length=256, layout=layout), NextToken(bpe.filler), 0, 0, 1
        ).setup()


@pytest.mark.parametrize("share", [0.1, 0.999])
def test_too_few_documents_for_both_splits(write_rows: Callable[..., Path], share: float) -> None:
    source = JSONLines(path=str(write_rows(["a whole text"])), validation=share)
    wanted = r"split is empty: data\.validation=0\.\d+ of 1 document.*document_separator"
    with pytest.raises(DataError, match=wanted):
        list(source.documents())


def test_sequences_must_go_round_among_the_ranks(source: Source, bpe: Tokenizer) -> None:
    with pytest.raises(SpecError, match=r"batch\.sequences=8 is not a multiple of the 3 ranks; the next is 9"):
        DataModule(DocumentMaterial(source, bpe), _batch(sequences=8), NextToken(bpe.filler), 0, 0, 3)


def test_a_sequence_has_a_least_length() -> None:
    with pytest.raises(SpecError, match=r"batch: length=4 is too short"):
        _batch(length=4).build()


@pytest.mark.parametrize(
    ("spec", "rows", "wanted"),
    [
        ({"kind": "bpe", "vocab": 300}, 290, r"has 300 tokens and the model's table 290 rows.*vocab=300"),
        (
            {"kind": "bpe", "vocab": 258},
            258,
            r"tokenizer: vocab=258 is too small: 256 bytes and 3 special tokens make 259",
        ),
        ({"kind": "file", "path": "SAVED"}, 399, r"tokenizer\.json has 400 tokens and the model's table 399 rows"),
        (
            {"kind": "file", "path": "SAVED"},
            32000,
            r"400 tokens and the model's table 32000 rows, which no text reaches",
        ),
    ],
)
def test_a_tokenizer_of_another_size_than_the_model(
    tmp_path: Path, source: Source, bpe: Tokenizer, spec: dict[str, Any], rows: int, wanted: str
) -> None:
    bpe.save(tmp_path / "saved")
    if "path" in spec:
        spec = {**spec, "path": str(tmp_path / "saved")}
    with pytest.raises(PlatformError, match=wanted):
        build_tokenizer(Spec.of(spec, "tokenizer", "tokenizer"), source, rows)


class ScoreNone(NextToken):
    """A task whose options hide every target."""

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        batch = super().__call__(rows)
        return {**batch, "labels": batch["labels"].new_full(batch["labels"].shape, -100)}


class ScoreAll(NextToken):
    """A task that scores the first token of a document too, on nothing."""

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        batch = stack(rows, self.filler)
        return {**batch, "labels": batch["input_ids"]}


@pytest.mark.parametrize(("collator", "share"), [(ScoreNone, "0%"), (ScoreAll, "100%")])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_nothing_or_everything_trained_stops_the_run(
    source: Source, bpe: Tokenizer, collator: type[NextToken], share: str, layout: str
) -> None:
    module = DataModule(DocumentMaterial(source, bpe), _batch(layout=layout), collator(bpe.filler), 0, 0, 1)
    with pytest.raises(DataError, match=rf"^{share} of the tokens would be trained \(\d+ of \d+"):
        module.setup()


def test_the_share_of_targets_counts_no_padding(source: Source, bpe: Tokenizer) -> None:
    module = DataModule(
        DocumentMaterial(source, bpe), _batch(layout="padded", length=64), NextToken(bpe.filler), 0, 0, 1
    )
    module.setup()
    batch = module.first_rows(4)
    real = int(batch["attention_mask"].sum())
    assert trained_share(batch) == pytest.approx((real - 4) / real)


def _batch(**fields: Any) -> Spec:
    return Spec.of({"kind": "rows", "length": 32, "sequences": 8, **fields}, "batch", "batch")
