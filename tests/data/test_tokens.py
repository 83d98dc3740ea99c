from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlplatform.data import tokens
from mlplatform.data.sources import JSONLines, Source
from mlplatform.data.tokens import Store, tokenised
from mlplatform.errors import DataError
from mlplatform.places import cache
from mlplatform.processors.tokenizer import Tokenizer, train


def _documents(store: Store, split: str) -> list[list[int]]:
    part = store.train if split == "train" else store.validation
    return [part.read(int(a), int(b)).tolist() for a, b in zip(part.offsets, part.offsets[1:], strict=False)]


def test_documents_come_back_as_they_were(source: Source, store: Store, bpe: Tokenizer) -> None:
    documents = list(source.documents())
    for split, held_out in (("train", False), ("validation", True)):
        texts = [d.text for d in documents if d.validation == held_out]
        found = _documents(store, split)
        assert [ids[0] for ids in found] == [bpe.bos] * len(texts)
        assert [ids[-1] for ids in found] == [bpe.eos] * len(texts)
        assert [bpe.decode(ids) for ids in found] == texts
    assert store.train.bytes == sum(len(d.text.encode()) for d in documents if not d.validation)
    assert store.validation.read_bytes(0, len(store.validation)).sum() == store.validation.bytes
    assert store.validation.bytes == sum(len(d.text.encode()) for d in documents if d.validation)


def test_tokens_are_as_small_as_the_vocabulary_allows(
    source: Source, scenes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tokenised(source, train(scenes, 300, "causal"))
    assert (small.folder / "train.0.tokens").stat().st_size == 2 * len(small.train)
    large = train(scenes, 300, "causal")
    large.backend.add_tokens([f"extra{number}" for number in range(1 << 16)])
    wide = tokenised(source, large)
    assert (wide.folder / "train.0.tokens").stat().st_size == 4 * len(wide.train)
    assert _documents(wide, "train") == _documents(small, "train")


def test_shards_and_processes_change_nothing(
    source: Source, store: Store, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = store.train.read(0, len(store.train))
    counts = store.validation.read_bytes(0, len(store.validation))
    monkeypatch.setenv("MLPLATFORM_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(tokens, "SHARD_TOKENS", 2000)
    monkeypatch.setattr(tokens, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(tokens, "BATCH_CHARACTERS", 5000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(tokens, "_encode", None)  # this process tokenises nothing itself
    again = tokenised(source, bpe)
    assert len(again.train.info["shards"]) > 5
    assert np.array_equal(again.train.read(0, len(whole)), whole)
    assert np.array_equal(again.validation.read_bytes(0, len(counts)), counts)
    assert np.array_equal(again.train.offsets, store.train.offsets)
    for start, stop in [(1999, 2003), (0, 0), (1500, 9000), (len(whole) - 1, len(whole))]:
        assert np.array_equal(again.train.read(start, stop), whole[start:stop])


def test_a_warm_cache_is_not_built_again(
    source: Source, store: Store, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_build", None)
    assert tokenised(source, bpe).folder == store.folder


def test_a_changed_text_or_tokenizer_is_never_mixed_up_with_the_old(
    source: Source, store: Store, bpe: Tokenizer, scenes: list[str]
) -> None:
    file = source.files[0]
    state = file.stat()
    changed = file.read_text().replace("Enter", "Exits")
    file.write_text(changed)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # neither size nor time tells
    assert file.stat().st_size == state.st_size
    new_text = tokenised(JSONLines(path=str(file), validation=0.2), bpe)
    assert sorted(
        bpe.decode(ids) for ids in _documents(new_text, "train") + _documents(new_text, "validation")
    ) == sorted(json.loads(line)["text"] for line in changed.splitlines())
    other = train(scenes, 350, "causal")
    new_tokenizer = tokenised(JSONLines(path=str(file), validation=0.2), other)
    assert len({store.folder, new_text.folder, new_tokenizer.folder}) == 3
    assert other.decode(_documents(new_tokenizer, "train")[0]) == bpe.decode(_documents(new_text, "train")[0])


@pytest.mark.parametrize("name", ["train.0.tokens", "train.offsets", "validation.0.bytes", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "gone", "longer"])
def test_a_damaged_cache_is_built_again(
    source: Source, store: Store, bpe: Tokenizer, name: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, whole = store.folder / name, (store.folder / name).read_bytes()
    expected = _documents(store, "train")
    path.unlink()
    if harm != "gone":
        path.write_bytes(whole[: len(whole) // 2] if harm == "cut" else whole + b"more")
    again = tokenised(source, bpe)
    assert path.read_bytes() == whole
    assert _documents(again, "train") == expected
    assert f"the cached tokens of {source.name} are damaged" in caplog.text


def test_data_that_changes_under_the_reader_is_refused(
    source: Source, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_and_change(file: Path) -> list[str]:
        texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
        file.write_text(file.read_text() + '{"text": "one more"}\n')
        return texts

    monkeypatch.setattr(source, "texts", read_and_change)
    with pytest.raises(DataError, match=r"rows\.jsonl: the data changed while it was tokenised"):
        tokenised(source, bpe)
    assert not [p for p in (cache() / "tokens").iterdir() if p.is_dir()]


def test_a_worker_gets_the_files_not_their_contents(store: Store) -> None:
    store.train.read(0, 10)
    packed = pickle.dumps(store.train)
    assert len(packed) < 1000
    assert np.array_equal(pickle.loads(packed).read(5, 50), store.train.read(5, 50))


TWO = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from mlplatform.data.sources import JSONLines
from mlplatform.data.tokens import tokenised
from mlplatform.registry import Spec

source = JSONLines(path=sys.argv[1], validation=0.2)
tokenizer = Spec.of({"kind": "bpe", "vocab": 300}, "tokenizer").build(corpus=source)
store = tokenised(source, tokenizer)
print("tokens", len(store.train), tokenizer.key)
"""


def test_two_processes_on_a_cold_cache_share_one_tokenizer_and_one_build(
    write_rows: Callable[..., Path], scenes: list[str]
) -> None:
    path = write_rows(scenes * 20)
    both = [
        subprocess.Popen([sys.executable, "-c", TWO, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert "".join(told).count("tokenising rows.jsonl") == 1
    assert told[0].splitlines()[-1] == told[1].splitlines()[-1]
    assert len([p for p in (cache() / "tokenizers").iterdir() if p.is_dir()]) == 1
