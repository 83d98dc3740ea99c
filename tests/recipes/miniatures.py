"""Recipes made small: data of a few rows with the same columns, and overrides that shrink the run.

Other modules of this folder whose names begin with `miniatures_` have tables of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import mlplatform as mp
from mlplatform.processors.tokenizer import train

WORDS = ["sun", "moon", "star", "wind", "rain", "snow", "leaf", "tree", "rose", "bird", "fish", "wolf", "bear", "lion"]
SMALL_BERT = [
    "model.trunk.dim=24",
    "model.trunk.depth=1",
    "model.trunk.layer.attention.heads=2",
    "model.trunk.layer.mlp.width=32",
]


def write(folder: Path, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Write rows as two files; return the overrides that name them."""
    made = list(rows)
    for name, part in (("train", made[8:]), ("validation", made[:8])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return [f"data.path={folder / 'train.jsonl'}", f"data.validation={folder / 'validation.jsonl'}"]


def texts(count: int = 40) -> list[str]:
    return [f"{WORDS[i % 14]} and {WORDS[(3 * i + 1) % 14]} {WORDS[(5 * i + 2) % 14]}" for i in range(count)]


def pretrained(folder: Path, model: str, overrides: list[str]) -> list[str]:
    """Write a checkpoint of a small model with its tokenizer; return the overrides that start from it."""
    start = folder / "start"
    words = train(texts(), 300, "masked")
    mp.save(mp.build(model, [one.removeprefix("model.") for one in overrides]), start)
    words.save(start)
    return [*overrides, f"init_from={start}", f"tokenizer.path={start}"]


def scenes(folder: Path, length: int = 32) -> list[str]:
    """Write a text of sixty documents; return the overrides that name it and cut rows short."""
    path = folder / "scenes.txt"
    path.write_text("\n\n\n".join(f"{i} {' '.join(texts())}" for i in range(60)))
    data = [f"data.path={path}", "data.document_separator='\\n\\n\\n+'", "data.validation=0.3"]
    return [*data, f"batch.length={length}"]


def llama_10min(folder: Path) -> list[str]:
    sizes = [f"model.trunk.{size}" for size in ("dim=24", "depth=1", "layer.mlp.width=32", "input.vocab=300")]
    heads = ["model.trunk.layer.attention.heads=2", "model.trunk.layer.attention.kv_heads=1"]
    return [*scenes(folder), *sizes, *heads]


def sentiment(folder: Path) -> list[str]:
    rows = [{"text": f"{text} {i}", "label": ("negative", "positive")[i % 2]} for i, text in enumerate(texts())]
    return [*write(folder, rows), *pretrained(folder, "minilm", [*SMALL_BERT, "model.trunk.input.vocab=300"])]


def portuguese_pos(folder: Path) -> list[str]:
    tags = [f"T{i}" for i in range(16)]
    rows = [{"tokens": (WORDS * 2)[i % 5 :][:16], "tags": tags} for i in range(40)]
    return [*write(folder, rows), *SMALL_BERT, "model.trunk.input.vocab=300"]


def vit_digits(folder: Path) -> list[str]:
    return ["model.trunk.dim=24", "model.trunk.depth=1"]


MINIATURES: dict[str, Callable[[Path], list[str]]] = {
    made.__name__: made for made in (llama_10min, sentiment, portuguese_pos, vit_digits)
}
"""Recipe -> what writes its miniature's data into a folder and returns the overrides that shrink it."""
