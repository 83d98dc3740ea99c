"""Text to token numbers and back: one Tokenizer, trained on the run's own text or read from a file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from mlplatform.cached import cached_folder, write_whole
from mlplatform.errors import DataError, SpecError, did_you_mean, listing
from mlplatform.registry import Positive, Text, block

if TYPE_CHECKING:
    from mlplatform.processors.chat import ChatTemplate

log = logging.getLogger(__name__)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # stated, so that the library does not warn at each later fork

ROLES = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")
USUAL = {
    "bos": ("<|bos|>", "<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos": ("<|eos|>", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "pad": ("<|pad|>", "<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
    "mask": ("<mask>", "[MASK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
}
"""What the special tokens are called, for a tokenizer.json that comes alone; the first one present is taken."""
TRAINED = {
    "causal": {"bos": "<|bos|>", "eos": "<|eos|>", "pad": "<|pad|>"},
    "masked": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "sentinels": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
    "chat": {"bos": "<|bos|>", "eos": "<|im_end|>", "pad": "<|pad|>"},
    "visual": {"bos": "<|bos|>", "eos": "<|im_end|>", "pad": "<|pad|>"},
}
"""The special tokens of a tokenizer trained here, in the order of their numbers."""
FRAMES = {
    "causal": ("<|bos|> $A", "<|bos|> $A <|bos|>:1 $B:1"),
    "masked": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "sentinels": ("$A </s>", "$A </s> $B:1 </s>:1"),
    "chat": ("<|bos|> $A", "<|bos|> $A <|bos|>:1 $B:1"),
    "visual": ("<|bos|> $A", "<|bos|> $A <|bos|>:1 $B:1"),
}
SENTINELS = [f"<extra_id_{number}>" for number in range(100)]
"""What T5 puts where a span was taken out."""
IMAGE = "<image>"
"""Stands where an image does in a text."""
BESIDE = {"sentinels": SENTINELS, "chat": ["<|im_start|>"], "visual": ["<|im_start|>", IMAGE]}
"""Special tokens without a role."""
Specials = Literal["causal", "masked", "sentinels", "chat", "visual"]
SPARE_ROWS = 1024
"""Rows a model may have beyond the tokenizer: sizes are rounded up for speed, by 905 in Phi-2, 267 in Qwen3."""


class Corpus(Protocol):
    """What a tokenizer is trained on."""

    def fingerprint(self) -> str:
        """Return a hash of the texts."""
        ...

    def train_texts(self) -> Iterator[str]:
        """Yield the texts, in the same order each time."""
        ...


class Tokenizer:
    """A tokenizer and its special tokens.

    `bos eos pad unk mask cls sep` are token numbers or None. A document is framed as [start] text [end], where start
    is bos, else cls, else eos, and end is eos, else sep, else bos: so its first token has something before it.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, special: Mapping[str, str], source: str, config: Mapping[str, Any]
    ) -> None:
        backend.no_truncation()  # a tokenizer.json may carry a limit, which would cut every document
        backend.no_padding()
        self.backend, self.source, self.config = backend, source, dict(config)
        self.special = {role: token for role, token in special.items() if backend.token_to_id(token) is not None}
        self.bos, self.eos, self.pad, self.unk, self.mask, self.cls, self.sep = (self._id(role) for role in ROLES)

    def _id(self, *roles: str) -> int | None:
        return next((self.backend.token_to_id(self.special[r]) for r in roles if r in self.special), None)

    @cached_property
    def vocab_size(self) -> int:
        """The largest token number plus one: the rows a model needs."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def frame(self) -> tuple[int, int]:
        """The token numbers (start, end) around each document. Raises DataError when the tokenizer has none."""
        start, end = self._id("bos", "cls", "eos"), self._id("eos", "sep", "bos")
        if start is None or end is None:
            text = "names no bos, eos, cls or sep token, and documents need one between them"
            raise DataError(f"{self.source}: {text}; set tokenizer.eos to one of its tokens")
        return start, end

    @property
    def filler(self) -> int:
        """The token number that stands where there is no text: pad, else eos, else 0."""
        found = self._id("pad", "eos")
        return 0 if found is None else found

    @property
    def special_ids(self) -> list[int]:
        """The numbers of the named special tokens."""
        return sorted({number for role in ROLES if (number := self._id(role)) is not None})

    @cached_property
    def key(self) -> str:
        """A hash of all that decides which tokens a text becomes."""
        special = json.dumps(self.special, sort_keys=True)
        return hashlib.sha256(f"{self.backend.to_str()}\n{special}".encode()).hexdigest()

    @cached_property
    def chat(self) -> ChatTemplate | None:
        """What writes conversations as text, as the model's files say; None where they say nothing."""
        from mlplatform.processors.chat import ChatTemplate

        special = {f"{role}_token": token for role, token in self.special.items()}
        return ChatTemplate.of_config({**self.config, **special}, self.source)

    def encode(self, text: str, *, specials: bool = True) -> list[int]:
        """Return the token numbers, as Hugging Face's tokenizer does; `specials` adds those of its template."""
        return self.backend.encode(text, add_special_tokens=specials).ids

    def cut(self, text: str, pair: str | None, length: int) -> tokenizers.Encoding:
        """Return the encoding of a text or a pair of texts, of which the longer one is cut first, to `length` tokens.

        Special tokens spelled out in a text are plain text.
        """
        return self._cutting(length).encode(text, pair)

    def cut_words(self, words: Sequence[str], length: int) -> tokenizers.Encoding:
        """Return the encoding of a text that is cut into words, at most `length` tokens; `word_ids` tells which."""
        return self._cutting(length).encode(list(words), is_pretokenized=True)

    def windows(self, text: str, pair: str, length: int, stride: int) -> list[tokenizers.Encoding]:
        """Return encodings of `length` tokens that have the whole text, and together the whole pair.

        Args:
            stride: tokens of the pair that two neighbours share.

        Raises:
            ValueError: the text leaves no room for the pair.
        """
        backend = self._cutting(length, stride)
        taken = len(self._plain.encode(text, add_special_tokens=False)) + backend.num_special_tokens_to_add(True)
        room = length - taken
        if room <= stride:
            raise ValueError(f"the question takes {taken} of {length} tokens, and windows share {stride}")
        first = backend.encode(text, pair)
        return [first, *first.overflowing]

    def _cutting(self, length: int, stride: int | None = None) -> tokenizers.Tokenizer:
        """Return the backend that cuts at a length: the longer one of a pair, or with `stride` the second."""
        if (length, stride) not in self._cutters:
            backend = tokenizers.Tokenizer.from_str(self._plain.to_str())
            backend.encode_special_tokens = True
            if stride is None:
                backend.enable_truncation(length, strategy="longest_first")
            else:
                backend.enable_truncation(length, stride=stride, strategy="only_second")
            self._cutters[length, stride] = backend
        return self._cutters[length, stride]

    @cached_property
    def _cutters(self) -> dict[tuple[int, int | None], tokenizers.Tokenizer]:
        return {}

    def offsets(self, text: str, *, specials: bool = True) -> list[tuple[int, int]]:
        """Return the (start, end) characters of each token of `encode`."""
        return self.backend.encode(text, add_special_tokens=specials).offsets

    def decode(self, ids: Iterable[int], *, specials: bool = False) -> str:
        """Return the text; `specials` shows the special tokens in it."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=not specials)

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text alone. Special tokens spelled out in a text are plain text."""
        return [one.ids for one in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def documents(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return [start] text [end] of each text. Special tokens spelled out in a text are plain text."""
        start, end = self.frame
        return [np.asarray([start, *ids, end], dtype=np.uint32) for ids in self.plain(texts)]

    def documents_with_bytes(self, texts: Sequence[str]) -> list[tuple[NDArray[np.uint32], NDArray[np.uint32]]]:
        """Return the tokens of `documents`, each with how many UTF-8 bytes of the text its tokens stand for.

        A token stands for the bytes from the end of the one before it to its own end, and the end token for what is
        left, so the counts of a document always sum to its size, whatever the tokenizer drops or rewrites.
        """
        start, end = self.frame
        found = []
        for text, one in zip(texts, self._plain.encode_batch(list(texts), add_special_tokens=False), strict=True):
            ends = np.asarray([stop for _, stop in one.offsets], dtype=np.int64)
            reached = byte_positions(text)[np.maximum.accumulate(ends)] if len(ends) else ends
            counts = np.diff(reached, prepend=0, append=len(text.encode()))
            ids = np.asarray([start, *one.ids, end], dtype=np.uint32)
            found.append((ids, np.concatenate([[0], counts]).astype(np.uint32)))
        return found

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(self.backend.to_str())
        plain.encode_special_tokens = True
        return plain

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads."""
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **self.config}
        config.update({f"{role}_token": token for role, token in self.special.items()})
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "tokenizer.json", self.backend.to_str(pretty=True).encode())
        if config["tokenizer_class"] == "Wav2Vec2CTCTokenizer":  # which reads nothing else
            numbers = dict(sorted(self.backend.get_vocab().items(), key=lambda one: one[1]))
            write_whole(folder / "vocab.json", json.dumps(numbers, ensure_ascii=False, indent=2).encode())
        write_whole(
            folder / "tokenizer_config.json", (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.backend.to_str(), self.special, self.source, self.config)


def _restore(text: str, special: dict[str, str], source: str, config: dict[str, Any]) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(text), special, source, config)


def byte_positions(text: str) -> NDArray[np.int64]:
    """Return, for each of the len(text) + 1 character positions, how many UTF-8 bytes come before it."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


@block("tokenizer/bpe")
def bpe(
    corpus: Corpus,
    *,
    vocab: Positive,
    specials: Literal["causal", "masked", "sentinels", "chat", "visual"] = "causal",
    sample_bytes: Positive = 1_000_000_000,
) -> Tokenizer:
    """Byte-level BPE (GPT-2's) trained on the train split of the run's own data and cached. arXiv:1508.07909

    Args:
        vocab: number of tokens, the 256 bytes and the special tokens counted; less when the text has no more pairs.
        specials: `causal` puts <|bos|> before a text; `masked` frames it as [CLS] text [SEP] and has [MASK];
            `sentinels` puts </s> after it and has <extra_id_0> to <extra_id_99>, as T5; `chat` is `causal` with
            ChatML's <|im_start|> and <|im_end|>, which ends a text too, and its template; `visual` is `chat` with
            <image>, token 4.
        sample_bytes: of a larger train split, training reads this much from its start.
    """
    least = 256 + len(_specials(specials))
    if vocab < least:
        raise SpecError(f"vocab={vocab} is too small: 256 bytes and {least - 256} special tokens make {least}")
    options = f"bpe 1 {tokenizers.__version__} {vocab} {specials} {sample_bytes} {corpus.fingerprint()}"
    key = hashlib.sha256(options.encode()).hexdigest()[:32]

    def build(folder: Path) -> None:
        train(_first(corpus.train_texts(), sample_bytes), vocab, specials).save(folder)

    return load(cached_folder("tokenizers", key, build, _damage, "trained tokenizer"))


@block("tokenizer/file")
def file(
    *,
    path: Text,
    bos: Text | None = None,
    eos: Text | None = None,
    pad: Text | None = None,
    unk: Text | None = None,
    mask: Text | None = None,
    chat: Literal["chatml"] | None = None,
) -> Tokenizer:
    """A tokenizer.json, or a folder that holds one as Hugging Face writes it.

    Args:
        path: the file or folder.
        bos, eos, pad, unk, mask: special tokens, where the files name none or others are wanted.
        chat: the template that writes conversations, where the files have none or another is wanted.
    """
    given = {"bos": bos, "eos": eos, "pad": pad, "unk": unk, "mask": mask}
    loaded = load(path, {role: token for role, token in given.items() if token is not None})
    loaded.config.update(_chat_config(chat))
    return loaded


def _chat_config(template: str | None) -> dict[str, Any]:
    from mlplatform.processors.conversations import CHATML

    return {"chat_template": CHATML} if template == "chatml" else {}


def _specials(name: str) -> list[str]:
    return [*TRAINED[name].values(), *BESIDE.get(name, [])]


def train(texts: Iterable[str], vocab: int, specials: Specials) -> Tokenizer:
    """Train a byte-level BPE tokenizer. The result depends on the texts alone."""
    special = TRAINED[specials]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=_specials(specials), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    one, two = FRAMES[specials]
    numbers = [(token, backend.token_to_id(token)) for token in special.values()]
    backend.post_processor = processors.TemplateProcessing(single=one, pair=two, special_tokens=numbers)
    config = _chat_config("chatml" if "<|im_start|>" in _specials(specials) else None)
    if IMAGE in _specials(specials):
        config["extra_special_tokens"] = {"image_token": IMAGE}
    return Tokenizer(backend, special, "the trained tokenizer", config)


def load(path: Path | str, special: Mapping[str, str] | None = None) -> Tokenizer:
    """Read a tokenizer.json, or a folder that holds one; `special` goes before what the files name.

    Raises:
        DataError: the file is missing, broken, of an unknown type, or lacks a token of `special`.
    """
    path = Path(path).expanduser()
    main = path / "tokenizer.json" if path.is_dir() else path
    if path.is_dir() and not main.is_file():
        from mlplatform.processors.characters import from_folder

        if (spelling := from_folder(path)) is not None:
            return spelling
    try:
        text = main.read_text(encoding="utf-8")
        backend = tokenizers.Tokenizer.from_str(text)
    except OSError as error:
        raise DataError(f"{main}: {error.strerror}; {_instead(main.parent)}") from None
    except Exception as error:  # the library raises plain Exception
        reason = str(error).strip().split("\n")[0]
        if "ModelUntagged" in reason:
            reason = "its 'model' is none of BPE, Unigram, WordLevel and WordPiece, or lacks a part"
        raise DataError(
            f"{main}: not a tokenizer.json that tokenizers {tokenizers.__version__} reads: {reason}"
        ) from None
    if backend.get_vocab_size() == 0:
        raise DataError(f"{main}: its vocabulary is empty")
    config = {**_json(main.parent / "tokenizer_config.json"), **_templates(main.parent)}
    named = {**_json(main.parent / "special_tokens_map.json"), **config}
    found = {role: _content(named.get(f"{role}_token")) for role in ROLES}
    if not named:
        found = {role: next((t for t in USUAL[role] if backend.token_to_id(t) is not None), None) for role in ROLES}
    for role, token in (special or {}).items():
        if backend.token_to_id(token) is None:
            near = did_you_mean(token, backend.get_vocab())
            raise DataError(f"{main}: it has no token '{token}', which tokenizer.{role} names{near}")
        found[role] = token
    return Tokenizer(backend, {role: t for role, t in found.items() if t is not None}, str(main), config)


def check_vocab(tokenizer: Tokenizer, rows: int, *, trained: bool) -> None:
    """Raise DataError when a model whose token table has `rows` rows doesn't go with the tokenizer.

    Args:
        trained: the tokenizer was trained for this run, so its size was an upper bound: small texts give fewer.
    """
    size = tokenizer.vocab_size
    told = f"{tokenizer.source} has {size} tokens and the model's table {rows} rows"
    if size > rows:
        raise DataError(f"{told}: token numbers from {rows} on have no row; set model.trunk.input.vocab={size}")
    if not trained and rows - size > SPARE_ROWS:
        raise DataError(f"{told}, which no text reaches; set model.trunk.input.vocab={size} or take its own tokenizer")


def _first(texts: Iterator[str], most: int) -> Iterator[str]:
    left = most
    for text in texts:
        if left <= 0:
            return
        left -= len(text)
        yield text


def _damage(folder: Path) -> str | None:
    try:
        load(folder)
    except DataError as error:
        return str(error)
    return None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable JSON file: {error}") from None
    if not isinstance(data, dict):
        raise DataError(f"{path}: a JSON object is needed, not a {type(data).__name__}")
    return data


def _templates(folder: Path) -> dict[str, Any]:
    """Return the chat templates that files of their own hold, as tokenizer_config.json would."""
    files = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    try:
        found = {file.stem: file.read_text(encoding="utf-8") for file in files if file.is_file()}
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: a chat template is no readable text: {error}") from None
    if "chat_template" in found:
        found = {"default": found.pop("chat_template"), **found}
    if list(found) == ["default"]:
        return {"chat_template": found["default"]}
    return {"chat_template": [{"name": n, "template": text} for n, text in found.items()]} if found else {}


def _content(value: Any) -> str | None:
    """Files hold a special token as a string or as an object with its `content`."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _instead(folder: Path) -> str:
    others = [n for n in ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model") if (folder / n).is_file()]
    if others:
        return (
            f"the folder has {listing(others)}: save it once with transformers' AutoTokenizer to get a tokenizer.json"
        )
    return "give a tokenizer.json, or a folder that holds one"
