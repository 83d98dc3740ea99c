"""Miniatures of the recipes for sequence to sequence, chats and preferences: a few rows, two steps, small models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mlplatform.cli.main import main

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
LLAMA = [
    "model.trunk.dim=32",
    "model.trunk.depth=1",
    "model.trunk.layer.attention.heads=2",
    "model.trunk.layer.attention.kv_heads=1",
    "model.trunk.layer.mlp.width=48",
    "model.trunk.input.vocab=300",
    "batch.sequences=4",
    "batch.micro=4",
]
STEPS = ["trainer.max='2 steps'", "trainer.validate_every='1 steps'", "trainer.checkpoint_every='1 steps'"]


def _files(folder: Path, rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Write rows as a train and a validation file; return the overrides that name them."""
    made = list(rows)
    places = []
    for name, part in (("path", made[8:]), ("validation", made[:8])):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
        places.append(f"data.{name}={path}")
    return places


def _pairs(first: str, second: str) -> list[dict[str, str]]:
    return [{first: f"take {a} and {b}", second: f"{b} {a}"} for a in WORDS for b in WORDS]


def _base(folder: Path, recipe: str, options: list[str]) -> list[str]:
    """Train the recipe that another one begins with; return the overrides that name its run."""
    run = trained(folder, recipe, [*options, *LLAMA])
    return [f"init_from={run}", f"tokenizer.path={run / 'tokenizer'}"]


def trained(folder: Path, recipe: str, options: list[str]) -> Path:
    """Train a recipe for two steps; return its run."""
    assert main(["train", f"recipes={recipe}", *options, *STEPS, f"outputs={folder / 'outputs'}"]) == 0
    (run,) = (folder / "outputs" / recipe).iterdir()
    return run


SIZES = [f"model.{tower}.{size}" for tower in ("encoder", "decoder") for size in ("dim=32", "depth=1")]
T5 = [*SIZES, "model.encoder.input.vocab=400", "batch.sequences=4", "batch.micro=4"]


def t5_translation(folder: Path) -> list[str]:
    return [*_files(folder, _pairs("source", "target")), *T5, *STEPS]


def t5_sentences(folder: Path) -> list[str]:
    names = [one.removeprefix("data.") for one in _files(folder, _pairs("source", "target"))]
    return [*(f"data.parts.{part}.{name}" for part in ("english", "spanish") for name in names), *T5, *STEPS]


def t5_spans_translation(folder: Path) -> list[str]:
    run = trained(folder, "t5_sentences", t5_sentences(folder))
    return [*t5_translation(folder), f"init_from={run}", f"tokenizer.path={run / 'tokenizer'}"]


def llama_chat_base(folder: Path) -> list[str]:
    return [*_files(folder, _pairs("source", "target")), *LLAMA, *STEPS]


def chat_lora(folder: Path) -> list[str]:
    data = _files(folder, _pairs("source", "target"))
    return [*data, *LLAMA, *STEPS, *_base(folder, "llama_chat_base", data)]


def dpo_base(folder: Path) -> list[str]:
    return [*_files(folder, _pairs("chosen", "rejected")), *LLAMA, *STEPS]


def dpo(folder: Path) -> list[str]:
    data = _files(folder, _pairs("chosen", "rejected"))
    return [*data, *LLAMA, *STEPS, *_base(folder, "dpo_base", data)]


MINIATURES: dict[str, Callable[[Path], list[str]]] = {
    made.__name__: made
    for made in (t5_translation, t5_sentences, t5_spans_translation, llama_chat_base, chat_lora, dpo_base, dpo)
}
"""Recipe -> what writes its miniature's data into a folder and returns the overrides that shrink it."""
