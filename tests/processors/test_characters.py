"""Vocabularies of characters: transformers reads what is saved, and what it saved is read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

from mlplatform.errors import DataError, SpecError
from mlplatform.processors.characters import alphabet, letters_of, spelled
from mlplatform.processors.tokenizer import load

TEXTS = ["hello all", "it's  a", "<pad> odd|", "zé"]


def test_transformers_reads_what_is_saved(tmp_path: Path) -> None:
    ours = spelled("helo atis'd")
    ours.save(tmp_path)
    theirs: Any = tf.AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs) is tf.Wav2Vec2CTCTokenizer
    assert len(theirs) == ours.vocab_size
    for text in TEXTS[:2]:
        assert ours.plain([text])[0] == theirs(text).input_ids
    numbers = ours.plain(["hello"])[0]
    assert theirs.decode(numbers, group_tokens=False) == ours.decode(numbers) == "hello"


def test_a_folder_with_a_vocabulary_alone_is_read(tmp_path: Path) -> None:
    words = {"[PAD]": 3, "[UNK]": 2, "_": 1, "A": 0, "B": 4}
    file = tmp_path / "vocab.json"
    file.write_text(json.dumps(words))
    theirs: Any = tf.Wav2Vec2CTCTokenizer(
        str(file), unk_token="[UNK]", pad_token="[PAD]", word_delimiter_token="_", bos_token=None, eos_token=None
    )
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert (ours.pad, ours.unk) == (3, 2)
    assert letters_of(ours) == {"A", "B", " "}
    assert ours.plain(["AB BA?"])[0] == theirs("AB BA?").input_ids == [0, 4, 1, 4, 0, 2]
    assert ours.decode([0, 0, 1, 4]) == "AA B"


def test_what_is_spelled_out_is_plain_and_the_unknown_has_its_number() -> None:
    ours = spelled("pad<> ")
    assert ours.decode(ours.plain(["<pad> dad"])[0]) == "<pad> dad"
    assert ours.plain(["z"])[0] == [ours.unk]
    again = pickle.loads(pickle.dumps(ours))  # as to a worker process
    assert again.plain(["pad"]) == ours.plain(["pad"])
    assert letters_of(again) == set("pad<> ")


def test_what_is_no_vocabulary_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"tokenizer\.letters has 'b' twice"):
        alphabet(letters="abb")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Wav2Vec2CTCTokenizer"}))
    (tmp_path / "vocab.json").write_text(json.dumps({"eng": {"a": 0}}))
    with pytest.raises(DataError, match=r"vocab\.json: a table from characters to numbers is needed"):
        load(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "<pad>": 1, "<unk>": 2}))
    with pytest.raises(DataError, match=r"it has no '\|'; name its own in tokenizer_config\.json as word_delimiter"):
        load(tmp_path)
