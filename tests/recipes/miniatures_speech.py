"""Recipes of speech made small: recordings of tones, and a Whisper and a HuBERT of a few thousand parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

import mlplatform as mp
from mlplatform.data.sound import save
from mlplatform.processors.audio import AudioProcessor
from mlplatform.processors.tokenizer import train

WAVE = [
    "model.trunk.dim=32",
    "model.trunk.depth=1",
    "model.trunk.input.front.channels=[8,8,8,8]",
    "model.trunk.input.positions.kernel=4",
    "model.trunk.layer.attention.heads=2",
    "model.trunk.layer.mlp.width=48",
]
MEL = [
    *(f"{tower}.{size}" for tower in ("encoder", "decoder") for size in (
        "dim=32", "depth=1", "layer.attention.heads=2", "layer.mlp.width=48")),
    "decoder.layer.cross.heads=2",
    "encoder.context_length=50",
    "decoder.context_length=32",
    "decoder.input.vocab=300",
    "start_token=0",
    "pad_token=2",
]  # fmt: skip
STEPS = ["trainer.max='2 steps'", "trainer.validate_every='1 steps'", "trainer.checkpoint_every='1 steps'"]
SAID = ["one two", "two", "six ten", "ten one", "seven", "one six"]


def digits(folder: Path) -> list[str]:
    """wav2vec 2.0 or HuBERT from nothing."""
    return [*_data(folder), *WAVE]


def recorded(folder: Path, name: str) -> list[str]:
    """The same from a run that spelled other recordings: here weights that never trained."""
    mp.save(mp.build(name, [one.removeprefix("model.") for one in WAVE]), folder / "start")
    return [*digits(folder), f"init_from={folder / 'start'}"]


def whisper(folder: Path) -> list[str]:
    """A Whisper that was pretrained: here one that was not."""
    start = folder / "start"
    mp.save(mp.build("whisper_tiny_en", MEL), start)
    train(SAID, 300, "causal").save(start)
    AudioProcessor({"feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": 1}).save(start)
    tools = [f"{key}={start}" for key in ("init_from", "tokenizer.path", "processor.path")]
    return [*_data(folder), "batch.length=32", *tools, *(f"model.{one}" for one in MEL)]


def _data(folder: Path) -> list[str]:
    rows = []
    for number, text in enumerate(SAID * 4):
        tone = np.sin(np.arange(5600) * (0.1 + number / 50)).astype(np.float32) / 2
        save(folder / f"{number}.wav", tone, 8000)
        rows.append({"audio": f"{number}.wav", "text": text})
    table = folder / "clips.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"data.path={table}", "data.validation=0.25", "batch.sequences=4", "batch.micro=2", *STEPS]


MINIATURES: dict[str, Callable[[Path], list[str]]] = {
    "wav2vec2_digits": digits,
    "hubert_digits": digits,
    "wav2vec2_recorded": partial(recorded, name="wav2vec2_tiny"),
    "hubert_recorded": partial(recorded, name="hubert_tiny"),
    "whisper_words": whisper,
}
