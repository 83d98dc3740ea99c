"""Masking: its statistics, that it depends on the sample alone, whole words, and what it never touches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from mlplatform.data.collate import Row
from mlplatform.errors import DataError, SpecError
from mlplatform.processors.tokenizer import Tokenizer, train
from mlplatform.registry import Spec
from mlplatform.tasks.masked_lm import Masking, word_pieces

MASK, PAD, CLS, SEP = 4, 0, 2, 3


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    """A byte-level BPE with [PAD] [UNK] [CLS] [SEP] [MASK] as tokens 0 to 4."""
    text = ["to be or not to be that is the question whether tis nobler in the mind to suffer, the slings and arrows"]
    found = train(text * 20, 330, "masked")
    assert (found.mask, found.pad, found.cls, found.sep) == (MASK, PAD, CLS, SEP)
    return found


def row(ids: Any, number: int = 0, seed: int = 1, epoch: int = 0) -> Row:
    ids = np.asarray(ids, dtype=np.int64)
    return Row({"input_ids": ids, "attention_mask": np.ones_like(ids)}, seed, epoch, number)


def long_row(number: int, size: int = 400) -> Row:
    inner = np.random.default_rng(number).integers(5, 330, size)
    return row(np.r_[CLS, inner, SEP], number)


def test_statistics(words: Tokenizer) -> None:
    batch = Masking(words, 0.15, 0.8, 0.1)([long_row(n) for n in range(200)])
    ids = np.stack([long_row(n).arrays["input_ids"] for n in range(200)])
    inputs, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    target = labels != -100
    assert (labels[target] == ids[target]).all()
    assert (inputs[~target] == ids[~target]).all()
    assert not target[:, [0, -1]].any()  # [CLS] and [SEP]
    count, total = target.sum(), 200 * 400
    assert count / total == pytest.approx(0.15, abs=4 * np.sqrt(0.15 * 0.85 / total))
    shares = {
        "hidden": (inputs[target] == MASK).mean(),
        "kept": (inputs[target] == ids[target]).mean(),
    }
    # A random token is the old one once in 325 times.
    assert shares["hidden"] == pytest.approx(0.8, abs=4 * np.sqrt(0.16 / count))
    assert shares["kept"] == pytest.approx(0.1 + 0.1 / 325, abs=4 * np.sqrt(0.09 / count))
    swapped = inputs[target & (inputs != MASK) & (inputs != ids)]
    assert swapped.min() >= 5  # never a special token
    assert len(np.unique(swapped)) > 250


def test_depends_on_seed_epoch_and_sample_alone(words: Tokenizer) -> None:
    collate = Masking(words, 0.15, 0.8, 0.1)
    alone = [collate([long_row(n)]) for n in (7, 3)]
    together = Masking(words, 0.15, 0.8, 0.1)([long_row(3), long_row(5), long_row(7)])
    for name in ("input_ids", "labels"):
        assert (together[name][2] == alone[0][name][0]).all()
        assert (together[name][0] == alone[1][name][0]).all()
    ids = long_row(3).arrays["input_ids"]
    variants = [row(ids, 3), row(ids, 4), row(ids, 3, seed=2), row(ids, 3, epoch=1)]
    assert len({tuple(collate([one])["labels"][0].tolist()) for one in variants}) == 4


@pytest.mark.parametrize("whole_words", [False, True])
def test_a_row_is_masked_alike_whatever_it_is_batched_with(words: Tokenizer, whole_words: bool) -> None:
    collate = Masking(words, 0.15, 0.8, 0.1, whole_words)
    for number in range(20):
        ids = np.random.default_rng(number).integers(5, words.vocab_size, 320)
        short, longer = row(np.r_[CLS, ids[:30], SEP], number), [row(ids[30:232]), row(ids[230:])]
        alone, together = collate([short]), collate([*longer, short])
        assert together["input_ids"].shape[1] == 202
        for name in ("input_ids", "labels"):
            assert (together[name][2, :32] == alone[name][0]).all()
        assert (together["labels"][2, 32:] == -100).all()


def test_padding_fillers_and_short_rows(words: Tokenizer) -> None:
    collate = Masking(words, 0.15, 0.8, 0.1)
    short = [row([CLS, 50, 60, SEP], n) for n in range(50)]
    filler = Row({"input_ids": np.zeros(4, np.int64), "attention_mask": np.zeros(4, np.int64)}, 1, 0, -1)
    batch = collate([*short, filler, row([CLS, *range(20, 60), SEP], 99)])
    targets = (batch["labels"] != -100).numpy()
    assert (targets[:50].sum(1) >= 1).all()  # every row teaches something
    assert not targets[:50, [0, 3]].any()
    assert not targets[:50, 4:].any()  # padding
    assert not targets[50].any()


def test_packed_rows_leave_the_frames_alone(words: Tokenizer) -> None:
    ids = np.asarray([CLS, *range(20, 40), SEP, CLS, *range(50, 70), SEP, 0, 0], dtype=np.int64)
    documents = np.asarray([1] * 22 + [2] * 22 + [0, 0])
    rows = [Row({"input_ids": ids, "document_ids": documents}, 1, 0, n) for n in range(100)]
    labels = Masking(words, 0.5, 0.8, 0.1)(rows)["labels"].numpy()
    allowed = (ids > 4) & (documents > 0)
    assert not (labels[:, ~allowed] != -100).any()
    assert (labels[:, allowed] != -100).mean() == pytest.approx(0.5, abs=0.05)


def test_validation_bytes_count_the_targets(words: Tokenizer) -> None:
    one = long_row(1)
    arrays = {**one.arrays, "token_bytes": np.arange(402)}
    batch = Masking(words, 0.15, 0.8, 0.1)([Row(arrays, 1, 0, 1)])
    chosen = np.flatnonzero(batch["labels"][0].numpy() != -100)
    assert batch["num_bytes"] == chosen.sum()
    assert "token_bytes" not in batch


def test_whole_words_are_chosen_whole(words: Tokenizer) -> None:
    text = "whether nobler arrows, question suffer. slings mind\nwhether the-question " * 6
    tokens = words.encode(text)
    assert len(tokens) > 100
    collate = Masking(words, 0.3, 0.8, 0.1, whole_words=True)
    labels = collate([row(tokens, n) for n in range(60)])["labels"].numpy() != -100
    names = [words.backend.id_to_token(token) for token in tokens]
    spans: list[list[int]] = []
    for place in range(1, len(tokens) - 1):
        letter, after = names[place][0].isalpha() and names[place][0] not in "ĠĊ", names[place - 1][-1].isalpha()
        after = after and names[place - 1][-1] not in "ĠĊ"
        if letter and after and place > 1:
            spans[-1].append(place)
        else:
            spans.append([place])
    assert max(len(span) for span in spans) >= 3
    for span in spans:
        chosen = labels[:, span]
        assert (chosen.all(1) == chosen.any(1)).all(), [names[place] for place in span]
    assert labels[:, 1:-1].mean() == pytest.approx(0.3, abs=0.05)


def test_wordpiece_marks_its_pieces() -> None:
    vocabulary = {"[CLS]": 0, "play": 1, "##ing": 2, "##s": 3, ",": 4, "##": 5, "we": 6}
    goes_on, may_be_gone_on = word_pieces(vocabulary)
    assert goes_on.tolist() == [False, False, True, True, False, True, False]
    assert may_be_gone_on.all()


def test_sentencepiece_and_bytes_by_their_letters() -> None:
    vocabulary = {"▁play": 0, "ing": 1, "Ġthe": 2, ",": 3, "Ċ": 4, "Ã": 5, "©": 6, "'s": 7, "3": 8}
    goes_on, may_be_gone_on = word_pieces(vocabulary)
    assert goes_on.tolist() == [False, True, False, False, False, True, True, False, True]
    assert may_be_gone_on.tolist() == [True, True, True, False, False, True, True, True, True]


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "[PAD]": 1}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    plain = Tokenizer(backend, {"pad": "[PAD]"}, "plain.json", {})
    with pytest.raises(DataError, match=r"plain\.json: masked_lm needs a mask token; set tokenizer\.specials=masked"):
        Masking(plain, 0.15, 0.8, 0.1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"probability": 0.0}, "task: probability=0 hides nothing"),
        ({"hidden": 0.8, "replaced": 0.3}, r"task: hidden=0\.8 and replaced=0\.3 are shares and sum to more than 1"),
        ({"probability": 1.0}, r"task\.probability: 1\.0 is not allowed"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], says: str) -> None:
    model = SimpleNamespace()
    with pytest.raises(SpecError, match=says):
        Spec.of({"kind": "masked_lm", **options}, "task", "task").build(model=model)
