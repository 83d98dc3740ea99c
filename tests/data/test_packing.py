from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mlplatform import places
from mlplatform.data.packing import IGNORED, Packed, Padded, Rows, rows
from mlplatform.data.sources import JSONLines, Source
from mlplatform.data.tokens import Store, Tokens, tokenised
from mlplatform.processors.tokenizer import Tokenizer, train
from mlplatform.registry import Spec

Pair = tuple[int, int]
Make = Callable[..., Path]


def _pairs_of_documents(tokens: Tokens) -> Counter[Pair]:
    """Every token of every document with the one before it."""
    found: Counter[Pair] = Counter()
    for start, stop in pairwise(tokens.offsets):
        ids = tokens.read(int(start), int(stop)).tolist()
        found.update(pairwise(ids))
    return found


def _pairs_of_targets(split: Rows, epoch: int) -> Counter[Pair]:
    """Every target of an epoch with the token the model sees just before it; a target must follow its own document."""
    found: Counter[Pair] = Counter()
    for number in range(len(split)):
        row = split.row(number, 5, epoch)
        for place in np.flatnonzero(row["labels"] != IGNORED):
            assert place > 0
            assert row["labels"][place] == row["input_ids"][place]
            if "document_ids" in row:
                assert row["document_ids"][place] == row["document_ids"][place - 1] > 0
                assert row["position_ids"][place] == row["position_ids"][place - 1] + 1
            found[int(row["input_ids"][place - 1]), int(row["input_ids"][place])] += 1
    return found


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("length", [8, 31, 256])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_every_token_is_a_target_once_after_its_own_predecessor(
    store: Store, bpe: Tokenizer, split: str, layout: str, length: int, epoch: int
) -> None:
    tokens = store.train if split == "train" else store.validation
    laid_out = rows(tokens, layout, length, 1, bpe.filler)
    assert _pairs_of_targets(laid_out, epoch) == _pairs_of_documents(tokens)


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("layout", [Packed, Padded])
def test_row_edges_lose_nothing(
    write_rows: Callable[..., Path], bpe: Tokenizer, size: int, layout: type[Packed] | type[Padded]
) -> None:
    texts = ["abcdefghijkl"[:size], "xyz", "q" * (size + 5)]
    tokens = tokenised(JSONLines(path=str(write_rows(texts)), validation=0.0), bpe).train
    for epoch in range(3):
        assert _pairs_of_targets(layout(tokens, 8, 1, bpe.filler), epoch) == _pairs_of_documents(tokens)


def test_positions_and_documents_of_a_packed_row(write_rows: Callable[..., Path], bpe: Tokenizer) -> None:
    tokens = tokenised(JSONLines(path=str(write_rows(["0", "123", "45"])), validation=0.0), bpe).train
    bos, eos, pad = bpe.bos, bpe.eos, bpe.filler
    digit = {n: bpe.encode(str(n), specials=False)[0] for n in range(6)}
    first, second = (Packed(tokens, 10, 1, pad).row(number, 0, 0) for number in (0, 1))
    assert first["input_ids"].tolist() == [bos, digit[0], eos, bos, digit[1], digit[2], digit[3], eos, bos, digit[4]]
    assert first["document_ids"].tolist() == [1, 1, 1, 2, 2, 2, 2, 2, 3, 3]
    assert first["position_ids"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1]
    assert (first["labels"] == IGNORED).nonzero()[0].tolist() == [0, 3, 8]
    assert second["input_ids"].tolist() == [digit[4], digit[5], eos, *[pad] * 7]
    assert second["document_ids"].tolist() == [1, 1, 1, *[0] * 7]
    assert second["labels"].tolist() == [IGNORED, digit[5], eos, *[IGNORED] * 7]


def test_packing_wastes_less_than_two_percent() -> None:
    import yaml

    source: Source = Spec.of(yaml.safe_load((places.conf() / "data" / "shakespeare.yaml").read_text()), "data").build()
    tokenizer = Spec.of({"kind": "bpe", "vocab": 2048}, "tokenizer").build(corpus=source)
    train = tokenised(source, tokenizer).train
    packed = Packed(train, 256, 1, tokenizer.filler)
    slots = len(packed) * 256
    assert 1 - (len(train) - train.documents) / slots < 0.006  # places that train nothing, of any kind
    padding = sum(int((packed.row(n, 0, 0)["document_ids"] == 0).sum()) for n in range(len(packed)))
    assert padding < 256


def test_later_epochs_cut_documents_elsewhere(store: Store, bpe: Tokenizer) -> None:
    packed = Packed(store.train, 32, 1, bpe.filler)
    starts = [packed.row(0, 5, epoch)["input_ids"].tolist() for epoch in range(4)]
    assert len({tuple(ids) for ids in starts}) > 2
    assert packed.row(3, 5, 2)["input_ids"].tolist() == packed.row(3, 5, 2)["input_ids"].tolist()


@pytest.mark.parametrize("length", [8, 31, 256])
def test_rows_that_stand_alone_are_framed_and_whole(source: Source, masked_bpe: Tokenizer, length: int) -> None:
    tokens = tokenised(source, masked_bpe).train
    padded = Padded(tokens, length, 0, masked_bpe.filler)
    texts: Counter[int] = Counter()
    for number in range(len(padded)):
        ids = padded.row(number, 0, 0)["input_ids"].tolist()
        assert (ids[0], ids[-1]) == (masked_bpe.cls, masked_bpe.sep)
        assert len(ids) <= length
        texts.update(ids[1:-1])
    everything = Counter(tokens.read(0, len(tokens)).tolist())
    del everything[masked_bpe.cls], everything[masked_bpe.sep]
    assert texts == everything


@pytest.mark.parametrize("epoch", [0, 1])
def test_packed_rows_without_overlap_hold_every_token_once(source: Source, masked_bpe: Tokenizer, epoch: int) -> None:
    tokens = tokenised(source, masked_bpe).train
    packed = Packed(tokens, 64, 0, masked_bpe.filler)
    found: Counter[int] = Counter()
    for number in range(len(packed)):
        row = packed.row(number, 1, epoch)
        assert "labels" not in row
        found.update(row["input_ids"][row["document_ids"] > 0].tolist())
    assert found == Counter(tokens.read(0, len(tokens)).tolist())


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_lengths_are_known_without_reading(store: Store, layout: str, overlap: int) -> None:
    split = rows(store.train, layout, 24, overlap, 0)
    numbers = np.random.default_rng(0).permutation(len(split))
    read = [len(split.row(int(number), 0, 0)["input_ids"]) for number in numbers]
    assert split.lengths(numbers).tolist() == read
    assert layout == "packed" or len(set(read)) > 5


@pytest.mark.parametrize("vocabulary", [300, 2000])
def test_packing_wastes_less_than_a_fiftieth_on_real_text(scenes: list[str], write_rows: Make, vocabulary: int) -> None:
    source = JSONLines(path=str(write_rows(scenes * 2)), validation=0.0)
    tokens = tokenised(source, train(scenes, vocabulary, "causal")).train
    for length in (32, 128, 512):
        split = Packed(tokens, length, 1, 0)
        used = sum(int((split.row(number, 0, 0)["document_ids"] > 0).sum()) for number in range(len(split)))
        assert used >= len(tokens), "every token, and one looked back at for each row but the first"
        assert 1 - used / (len(split) * length) < 0.02
