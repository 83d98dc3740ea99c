from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer

from mlplatform.errors import DataError, PlatformError
from mlplatform.processors import tokenizer as module
from mlplatform.processors.tokenizer import Tokenizer, byte_positions, load, train
from mlplatform.registry import Spec

TEXTS = ["the quick brown fox jumps over the lazy dog, the fox and the dog. ", "Über 你好 — it's 42\n\n\tthe end"] * 20
SAMPLES = [
    "",
    "the fox",
    "  two  spaces\n",
    "é 🙂 你好 — naïve",
    "<|eos|> and [MASK] inside",
    "unseen ☃ words",
    "a" * 300,
]


@pytest.fixture(scope="module", params=["causal", "masked"])
def trained(request: pytest.FixtureRequest) -> Tokenizer:
    return train(TEXTS, 300, request.param)


@pytest.mark.parametrize("model_type", [None, "llama", "gpt2", "bert"])
def test_transformers_loads_what_is_saved_and_gives_the_same_ids(
    trained: Tokenizer, tmp_path: Path, model_type: str | None
) -> None:
    trained.save(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path)
    for text in SAMPLES:
        ids = trained.encode(text)
        assert ids == theirs(text).input_ids
        assert trained.encode(text, specials=False) == theirs(text, add_special_tokens=False).input_ids
        assert trained.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert trained.decode(ids, specials=True) == theirs.decode(ids)
        assert trained.offsets(text) == theirs(text, return_offsets_mapping=True).offset_mapping
    for role in ("bos", "eos", "pad", "unk", "mask", "cls", "sep"):
        assert getattr(trained, role) == getattr(theirs, f"{role}_token_id")
    assert trained.vocab_size == len(theirs)


def test_what_transformers_saves_is_loaded_with_the_same_ids(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "ours")
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    again = load(tmp_path / "theirs")
    assert again.special == trained.special
    assert [again.encode(text) for text in SAMPLES] == [trained.encode(text) for text in SAMPLES]
    again.save(tmp_path / "again")
    last: Any = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert [last(text).input_ids for text in SAMPLES] == [trained.encode(text) for text in SAMPLES]


def test_text_comes_back_byte_for_byte(trained: Tokenizer) -> None:
    for text in TEXTS + SAMPLES:
        if "<|" not in text:
            assert trained.decode(trained.encode(text, specials=False)) == text


def test_documents_are_framed_and_special_tokens_in_them_are_plain_text(trained: Tokenizer) -> None:
    start, end = trained.frame
    named = {trained.special[role] for role in ("bos", "eos") if role in trained.special} or {"[CLS]", "[SEP]"}
    assert {trained.backend.id_to_token(start), trained.backend.id_to_token(end)} == named
    text = f"before {''.join(trained.special.values())} after"
    ids = trained.documents([text])[0].tolist()
    assert (ids[0], ids[-1]) == (start, end)
    assert not set(ids[1:-1]) & set(trained.special_ids)
    assert trained.decode(ids) == text
    assert set(trained.encode(text)) >= set(trained.special_ids)


@pytest.mark.parametrize("text", SAMPLES)
def test_bytes_of_the_tokens_sum_to_the_text(trained: Tokenizer, text: str) -> None:
    ids, counts = trained.documents_with_bytes([text])[0]
    assert ids.tolist() == trained.documents([text])[0].tolist()
    assert len(ids) == len(counts)
    assert (counts[0], counts.sum()) == (0, len(text.encode()))
    if text.isascii():
        pieces = [trained.decode([i]) for i in ids[1:-1]]
        assert counts[1:-1].tolist() == [len(piece.encode()) for piece in pieces]


def test_byte_positions_count_utf8() -> None:
    text = "aé你🙂z"
    assert byte_positions(text).tolist() == [len(text[:n].encode()) for n in range(len(text) + 1)]


def test_training_depends_on_the_texts_alone_and_fills_the_vocabulary() -> None:
    one, same, other = train(TEXTS, 290, "causal"), train(TEXTS, 290, "causal"), train(TEXTS[::2], 290, "causal")
    assert one.key == same.key != other.key
    assert one.vocab_size == 290
    assert train(["ab"], 5000, "causal").vocab_size < 300  # there are no more pairs to merge


def test_the_masked_template_frames_one_and_two_texts() -> None:
    masked = train(TEXTS, 300, "masked")
    assert masked.decode(masked.encode("the fox"), specials=True) == "[CLS]the fox[SEP]"
    pair = masked.backend.encode("the fox", "the dog")
    assert masked.decode(pair.ids, specials=True) == "[CLS]the fox[SEP]the dog[SEP]"
    assert pair.type_ids[0] == 0
    assert pair.type_ids[-1] == 1
    assert masked.mask not in masked.frame


def test_a_tokenizer_survives_pickling(trained: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(trained))
    assert again.key == trained.key
    assert again.special == trained.special


class Texts:
    """A corpus that counts how often it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def fingerprint(self) -> str:
        return "texts 1"

    def train_texts(self) -> Iterator[str]:
        self.reads += 1
        return iter(TEXTS)


def test_the_trained_tokenizer_is_cached_by_its_corpus_and_options() -> None:
    corpus = Texts()
    built = [_build(corpus, vocab=300), _build(corpus, vocab=300)]
    assert corpus.reads == 1
    assert built[0].key == built[1].key
    assert _build(corpus, vocab=280).vocab_size == 280
    assert _build(corpus, vocab=300, specials="masked").mask is not None
    assert _build(corpus, vocab=300, sample_bytes=5).vocab_size < 300
    assert corpus.reads == 4


def _build(corpus: Texts, **fields: Any) -> Tokenizer:
    return Spec.of({"kind": "bpe", **fields}, "tokenizer", "tokenizer").build(corpus=corpus)


def _bare(tmp_path: Path, *added: str) -> Path:
    """Write a tokenizer.json that comes alone."""
    backend = tokenizers.Tokenizer(models.WordLevel({"the": 0, "fox": 1, "[UNK]": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(list(added))
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def _file(path: Path, **fields: str) -> Tokenizer:
    return Spec.of({"kind": "file", "path": str(path), **fields}, "tokenizer", "tokenizer").build()


def test_special_tokens_of_a_lone_file_go_by_their_usual_names(tmp_path: Path) -> None:
    lone = _file(_bare(tmp_path, "<|endoftext|>"))
    assert (lone.bos, lone.eos, lone.unk, lone.pad) == (3, 3, 2, None)
    assert lone.frame == (3, 3)
    assert lone.filler == 3


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("written", ["<end>", {"content": "<end>", "lstrip": False}])
def test_special_tokens_are_read_from_hugging_faces_files(tmp_path: Path, name: str, written: Any) -> None:
    _bare(tmp_path, "<end>", "<|endoftext|>")
    (tmp_path / name).write_text(json.dumps({"eos_token": written, "bos_token": None}))
    folder = _file(tmp_path)
    assert (folder.eos, folder.bos, folder.unk) == (3, None, None)
    assert folder.frame == (3, 3)


def test_the_yaml_names_special_tokens_over_the_files(tmp_path: Path) -> None:
    _bare(tmp_path, "<end>", "<go>")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "chat_template": "{{ x }}"}))
    named = _file(tmp_path, bos="<go>", pad="<end>")
    assert (named.bos, named.eos, named.pad) == (4, 3, 3)
    named.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert (saved["bos_token"], saved["chat_template"]) == ("<go>", "{{ x }}")
    assert load(tmp_path / "saved").special == named.special


def test_a_limit_inside_a_tokenizer_file_does_not_cut_documents(tmp_path: Path) -> None:
    backend = train(TEXTS, 300, "causal").backend
    backend.enable_truncation(8)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(load(tmp_path).documents(["the fox " * 50])[0]) > 50
    assert len(load(tmp_path).encode("a")) < 8


BAD = {
    "missing": (None, r"tokenizer\.json: No such file or directory; give a tokenizer\.json"),
    "empty": ("", r"tokenizer\.json: not a tokenizer\.json that tokenizers .* reads: EOF"),
    "broken": ('{"model": ', r"tokenizer\.json: not a tokenizer\.json"),
    "unknown type": ('{"version":"1.0","model":{"type":"Foo"}}', r"its 'model' is none of BPE, Unigram, WordLevel"),
    "a list": ("[]", r"not a tokenizer\.json that tokenizers"),
    "binary": (b"\xff\xfe\x00", r"not a tokenizer\.json that tokenizers .* reads: 'utf-8'"),
    "no vocabulary": ('{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}', r"its vocabulary is empty"),
}


@pytest.mark.parametrize(("content", "wanted"), BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("as_folder", [True, False])
def test_a_bad_file_is_told_in_one_line(
    tmp_path: Path, content: str | bytes | None, wanted: str, as_folder: bool
) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        _file(tmp_path if as_folder else path)
    assert re.search(wanted, str(caught.value))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_tokenizer_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"sentencepiece")
    with pytest.raises(DataError, match=r"the folder has tokenizer\.model: save it once with transformers'"):
        _file(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(("content", "wanted"), [("{", "not a readable JSON file"), ("[]", "a JSON object is needed")])
def test_a_broken_file_beside_it_is_named(tmp_path: Path, name: str, content: str, wanted: str) -> None:
    _bare(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{re.escape(name)}: {wanted}"):
        _file(tmp_path)


def test_a_token_that_is_not_there_is_told(tmp_path: Path) -> None:
    _bare(tmp_path, "<end>")
    with pytest.raises(
        DataError, match=r"it has no token '<ende>', which tokenizer\.eos names \(did you mean '<end>'\?\)"
    ):
        _file(tmp_path, eos="<ende>")


def test_documents_need_a_token_between_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"names no bos, eos, cls or sep token.*set tokenizer\.eos"):
        _file(_bare(tmp_path)).documents(["the fox"])


def test_the_vocabulary_has_a_least_size() -> None:
    with pytest.raises(
        PlatformError, match=r"^tokenizer: vocab=260 is too small: 256 bytes and 5 special tokens make 261"
    ):
        _build(Texts(), vocab=260, specials="masked")


def test_a_cached_tokenizer_that_was_cut_short_is_trained_again() -> None:
    corpus = Texts()
    first = _build(corpus, vocab=300)
    path = Path(first.source)
    path.write_bytes(path.read_bytes()[:100])
    assert _build(corpus, vocab=300).key == first.key
    assert corpus.reads == 2


def test_spare_rows_of_a_model_are_fine() -> None:
    small = train(TEXTS, 300, "causal")
    module.check_vocab(small, 300, trained=False)
    module.check_vocab(small, 300 + module.SPARE_ROWS, trained=False)
    module.check_vocab(small, 32000, trained=True)
