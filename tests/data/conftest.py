"""Texts and data modules that the data tests share."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlplatform.data.collate import NextToken
from mlplatform.data.files import SHIPPED
from mlplatform.data.material import DocumentMaterial
from mlplatform.data.module import DataModule
from mlplatform.data.sources import JSONLines, Source
from mlplatform.data.tokens import Store, tokenised
from mlplatform.processors.tokenizer import Tokenizer, train
from mlplatform.registry import Spec


@pytest.fixture(scope="session")
def scenes() -> list[str]:
    """Sixty scenes of Shakespeare, each cut to 1 to 3000 characters, with a little text beyond ASCII."""
    with gzip.open(SHIPPED / "shakespeare_38plays.txt.gz", "rt", encoding="utf-8") as file:
        parts = file.read(600_000).split("\n\nSCENE ")
    cut = [part[: 1 + (number * 397) % 3000] for number, part in enumerate(parts[1:61])]
    return [text if number % 5 else f"{text} — über 你好 🙂" for number, text in enumerate(cut)]


@pytest.fixture(scope="session")
def bpe(scenes: list[str]) -> Tokenizer:
    """A byte-level BPE of 400 tokens, trained on the scenes."""
    return train(scenes, 400, "causal")


@pytest.fixture(scope="session")
def masked_bpe(scenes: list[str]) -> Tokenizer:
    """The same with [CLS], [SEP] and [MASK]."""
    return train(scenes, 400, "masked")


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write texts as JSON Lines and return the file."""

    def write(texts: Sequence[str], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write


@pytest.fixture
def source(write_rows: Callable[..., Path], scenes: list[str]) -> Source:
    """The scenes as a JSONL source, a fifth of them held out."""
    return JSONLines(path=str(write_rows(scenes)), validation=0.2)


@pytest.fixture
def store(source: Source, bpe: Tokenizer) -> Store:
    """The scenes' tokens."""
    return tokenised(source, bpe)


@pytest.fixture
def make_module(source: Source, bpe: Tokenizer) -> Callable[..., DataModule]:
    """Build the data module of one rank; keywords change the batch spec."""

    def make(rank: int = 0, world: int = 1, seed: int = 3, tokenizer: Tokenizer = bpe, **batch: Any) -> DataModule:
        shape = Spec.of({"kind": "rows", "sequences": 8, "micro": 2, "length": 32, **batch}, "batch", "batch")
        module = DataModule(DocumentMaterial(source, tokenizer), shape, NextToken(tokenizer.filler), seed, rank, world)
        module.setup()
        return module

    return make
