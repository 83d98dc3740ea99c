"""Vocabularies of single characters, which a model of sound spells with: wav2vec 2.0's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from mlplatform.cached import cached_folder
from mlplatform.errors import DataError, SpecError
from mlplatform.processors.tokenizer import Corpus, Tokenizer, _content, _damage, _json, load
from mlplatform.registry import Text, block

BLANK, UNKNOWN, SPACE = "<pad>", "<unk>", "|"
"""As wav2vec 2.0 names them: what CTC says between two characters, what stands for others, what is between words."""
VOCABULARY = "vocab.json"
KIND = "Wav2Vec2CTCTokenizer"
"""The class of transformers that reads the vocabulary."""


@block("tokenizer/characters")
def characters(corpus: Corpus) -> Tokenizer:
    """The characters of the transcripts of the run's own train split, and cached: <pad> is 0, <unk> 1, | the space."""
    key = hashlib.sha256(f"characters 1 {tokenizers.__version__} {corpus.fingerprint()}".encode()).hexdigest()[:32]

    def build(folder: Path) -> None:
        spelled({one for text in corpus.train_texts() for one in text}).save(folder)

    return load(cached_folder("tokenizers", key, build, _damage, "characters"))


@block("tokenizer/alphabet")
def alphabet(*, letters: Text) -> Tokenizer:
    """The characters that are given; a transcript with another one is a bad row.

    Args:
        letters: all of them, the space left away: "'abcdefghijklmnopqrstuvwxyz".
    """
    if len(set(letters)) < len(letters):
        twice = next(one for one in letters if letters.count(one) > 1)
        raise SpecError(f"tokenizer.letters has '{twice}' twice")
    return spelled(letters)


def spelled(letters: Iterable[str]) -> Tokenizer:
    """Return the tokenizer of some characters, in the order of their code points."""
    known = sorted(set(letters) - {" ", SPACE})
    return of_vocabulary({token: number for number, token in enumerate([BLANK, UNKNOWN, SPACE, *known])}, {})


def of_vocabulary(numbers: Mapping[str, int], config: Mapping[str, object]) -> Tokenizer:
    """Return the tokenizer of a vocab.json of wav2vec 2.0.

    Args:
        config: what tokenizer_config.json says: `pad_token`, `unk_token` and `word_delimiter_token`, where they differ.

    Raises:
        DataError: one of the three is not in the vocabulary.
    """
    usual = {"pad": BLANK, "unk": UNKNOWN, "word_delimiter": SPACE}
    said = {role: _content(config.get(f"{role}_token")) or token for role, token in usual.items()}
    for role, token in said.items():
        if token not in numbers:
            raise DataError(f"{VOCABULARY}: it has no '{token}'; name its own in tokenizer_config.json as {role}_token")
    backend = tokenizers.Tokenizer(models.WordLevel(dict(numbers), unk_token=said["unk"]))
    backend.normalizer = normalizers.Replace(" ", said["word_delimiter"])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Sequence([decoders.Replace(said["word_delimiter"], " "), decoders.Fuse()])
    backend.add_special_tokens([said["pad"], said["unk"]])
    about = {
        "tokenizer_class": KIND,
        "word_delimiter_token": said["word_delimiter"],
        "bos_token": None,
        "eos_token": None,
    }
    return Tokenizer(backend, {"pad": said["pad"], "unk": said["unk"]}, "the characters", {**about, **config})


def from_folder(folder: Path) -> Tokenizer | None:
    """Return the tokenizer of a folder of wav2vec 2.0 that has a vocab.json and no tokenizer.json; None of others.

    Raises:
        DataError: its vocab.json is no table of characters.
    """
    config = _json(folder / "tokenizer_config.json")
    if not (folder / VOCABULARY).is_file() or config.get("tokenizer_class") != KIND:
        return None
    numbers = _json(folder / VOCABULARY)
    if not numbers or not all(isinstance(number, int) for number in numbers.values()):
        raise DataError(f"{folder / VOCABULARY}: a table from characters to numbers is needed (of one language)")
    return of_vocabulary(numbers, config)


def letters_of(tokenizer: Tokenizer) -> frozenset[str]:
    """Return the characters a tokenizer can write, the space among them."""
    known = {token for token in tokenizer.backend.get_vocab() if len(token) == 1}
    return frozenset(known - {tokenizer.config.get("word_delimiter_token", SPACE)} | {" "})
