"""Tokens kept on disk: a source is tokenised once, into memory-mapped shards that every later run and rank shares.

A folder is named by a hash of the data's bytes, the source's options and the tokenizer, so what it holds can't be
stale. Files of a split:

    <split>.<shard>.tokens   uint16 or uint32: all documents in order, each [start] text [end]; none crosses a shard
    <split>.offsets          int64: where each document starts in the split, and where the last one ends
    validation.<shard>.bytes uint32: how many bytes of the text each token stands for
    manifest.json            counts, bad rows left out, and the size of every file
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlplatform.cached import cached_folder, wrong_size
from mlplatform.data.sources import Document, Source
from mlplatform.errors import DataError
from mlplatform.processors.tokenizer import Tokenizer, check_vocab
from mlplatform.registry import Spec

log = logging.getLogger(__name__)
FORMAT = 1
SHARD_TOKENS = 1 << 28
PARALLEL_BYTES = 64 << 20
"""From this size on, several processes tokenise."""
BATCH_CHARACTERS = 1 << 20


class Tokens:
    """One split: its documents as one long row of token numbers, read from disk as they are needed."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.info: dict[str, Any] = _manifest(folder)["splits"][split]
        self.bytes: int = self.info["bytes"]
        """Size of the split's text in UTF-8."""
        self.starts = np.cumsum([0, *self.info["shards"]])

    def __len__(self) -> int:
        """The number of tokens, each document's start and end token counted."""
        return int(self.starts[-1])

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each document starts, and where the last one ends."""
        return np.memmap(self.folder / f"{self.split}.offsets", dtype=np.int64, mode="r")

    @property
    def documents(self) -> int:
        """The number of documents."""
        return self.info["documents"]

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the tokens start..stop-1."""
        return self._gather(self._shards, start, stop)

    def read_bytes(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return how many bytes of text the tokens start..stop-1 stand for. Only validation splits have it."""
        return self._gather(self._byte_shards, start, stop)

    @cached_property
    def _shards(self) -> list[NDArray[Any]]:
        return self._map("tokens", np.dtype(_manifest(self.folder)["dtype"]))

    @cached_property
    def _byte_shards(self) -> list[NDArray[Any]]:
        return self._map("bytes", np.dtype(np.uint32))

    def _map(self, ending: str, dtype: np.dtype[Any]) -> list[NDArray[Any]]:
        names = [f"{self.split}.{number}.{ending}" for number in range(len(self.info["shards"]))]
        return [np.memmap(self.folder / name, dtype=dtype, mode="r") for name in names]

    def _gather(self, shards: list[NDArray[Any]], start: int, stop: int) -> NDArray[np.int64]:
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        parts = []
        while start < stop:
            end = min(stop, int(self.starts[first + 1]))
            base = int(self.starts[first])
            parts.append(shards[first][start - base : end - base])
            start, first = end, first + 1
        return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokens, (self.folder, self.split)  # a worker maps the files itself


class Store:
    """A source's tokens: both splits, and what was left out on the way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.train, self.validation = Tokens(folder, "train"), Tokens(folder, "validation")
        self.skipped: dict[str, int] = _manifest(folder)["skipped"]
        """Bad rows left out, by file."""


def build_tokenizer(tokenizer: Spec, source: Source, rows: int | None = None) -> Tokenizer:
    """Build a tokenizer spec, trained on the source's train split where its kind is trained.

    Args:
        rows: rows of the model's token table, which the tokenizer must fit.

    Raises:
        DataError: the tokenizer's files are missing or broken, or it doesn't go with the model.
    """
    built: Tokenizer = tokenizer.build(corpus=source)
    if rows is not None:
        check_vocab(built, rows, trained="corpus" in tokenizer.signature.handed)
    return built


def tokenised(source: Source, tokenizer: Tokenizer) -> Store:
    """Return the tokens of a source, from the cache when they are there.

    Raises:
        DataError: the data is not readable, has an empty split, changed while it was read, or the cache can't be
            written.
    """
    fingerprint = source.fingerprint()
    key = hashlib.sha256(f"tokens {FORMAT} {fingerprint} {tokenizer.key}".encode()).hexdigest()[:32]

    def build(folder: Path) -> None:
        _build(folder, source, tokenizer)
        if source.fingerprint() != fingerprint:
            raise DataError(f"{source.name}: the data changed while it was tokenised; start again when it is at rest")

    return Store(cached_folder("tokens", key, build, _damage, f"tokens of {source.name}"))


def _build(folder: Path, source: Source, tokenizer: Tokenizer) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    log.info("tokenising %s", source.name)
    with _Writer(folder, "train", dtype) as train, _Writer(folder, "validation", dtype) as validation:
        for part in _encoded(source, tokenizer):
            for ids in part.train:
                train.add(ids, None)
            for ids, counts in part.validation:
                validation.add(ids, counts)
            train.bytes += part.train_bytes
    manifest = {
        "format": FORMAT,
        "dtype": dtype.name,
        "splits": {"train": train.info(), "validation": validation.info()},
        "skipped": dict(source.skipped),
        "files": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


class _Writer:
    """Appends the documents of one split, a shard at a time."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype[Any]) -> None:
        self.folder, self.split, self.dtype = folder, split, dtype
        self.shards: list[int] = []
        self.documents = self.bytes = 0
        self.offsets = (folder / f"{split}.offsets").open("wb")
        self.offsets.write(np.int64(0).tobytes())
        self.files: dict[str, Any] = {}

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.offsets, *self.files.values()):
            file.close()

    def add(self, ids: NDArray[np.uint32], counts: NDArray[np.uint32] | None) -> None:
        if not self.shards or self.shards[-1] + len(ids) > SHARD_TOKENS:
            for file in self.files.values():
                file.close()
            self.files.clear()
            self.shards.append(0)
        self._file("tokens").write(ids.astype(self.dtype).tobytes())
        if counts is not None:
            self._file("bytes").write(counts.tobytes())
            self.bytes += int(counts.sum())
        self.shards[-1] += len(ids)
        self.documents += 1
        self.offsets.write(np.int64(sum(self.shards)).tobytes())

    def _file(self, ending: str) -> Any:
        if ending not in self.files:
            self.files[ending] = (self.folder / f"{self.split}.{len(self.shards) - 1}.{ending}").open("wb")
        return self.files[ending]

    def info(self) -> dict[str, Any]:
        return {"documents": self.documents, "bytes": self.bytes, "shards": self.shards}


class _Encoded(NamedTuple):
    """A batch of documents, tokenised."""

    train: list[NDArray[np.uint32]]
    train_bytes: int
    validation: list[tuple[NDArray[np.uint32], NDArray[np.uint32]]]


def _encode(tokenizer: Tokenizer, batch: list[Document]) -> _Encoded:
    train = [document.text for document in batch if not document.validation]
    validation = [document.text for document in batch if document.validation]
    size = sum(len(text.encode()) for text in train)
    return _Encoded(tokenizer.documents(train), size, tokenizer.documents_with_bytes(validation))


def _encoded(source: Source, tokenizer: Tokenizer) -> Iterator[_Encoded]:
    """Tokenise the documents in order; a large source by several processes. Memory: two batches a process."""
    batches = _batches(source.documents())
    workers = len(os.sched_getaffinity(0))
    if workers == 1 or sum(file.stat().st_size for file in source.files) < PARALLEL_BYTES:
        yield from (_encode(tokenizer, batch) for batch in batches)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer,)) as pool:
        running: deque[Future[_Encoded]] = deque()
        for batch in batches:
            running.append(pool.submit(_encode_in_worker, batch))
            if len(running) >= 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


_worker_tokenizer: Tokenizer


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process
    _worker_tokenizer = tokenizer


def _encode_in_worker(batch: list[Document]) -> _Encoded:
    return _encode(_worker_tokenizer, batch)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def _damage(folder: Path) -> str | None:
    """Say what is wrong with a folder: a file that is missing, cut short or too long."""
    try:
        files: dict[str, int] = _manifest(folder)["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"manifest.json: {error}"
    return wrong_size(folder, files)
