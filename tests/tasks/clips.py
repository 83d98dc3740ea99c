"""Recordings made of tones, a tone a letter, and small models that hear them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlplatform.data.sound import save

RATE = 8000
TONES = {"a": 500, "b": 900, "c": 1400, "d": 2100, " ": 0}
WAVE = [
    "model=wav2vec2_tiny",
    "model.trunk.dim=32",
    "model.trunk.depth=1",
    "model.trunk.input.front.channels=[8,8,8,8]",
    "model.trunk.input.positions.kernel=4",
    "model.trunk.layer.attention.heads=2",
    "model.trunk.layer.mlp.width=48",
    "processor=audio",
    f"processor.config.sampling_rate={RATE}",
]
MEL = [
    "model=whisper",
    *(f"model.{tower}.{size}" for tower in ("encoder", "decoder") for size in (
        "dim=32", "depth=1", "layer.attention.heads=2", "layer.mlp.width=48")),
    "model.decoder.layer.cross.heads=2",
    "model.encoder.context_length=50",
    "model.decoder.context_length=32",
    "model.decoder.input.vocab=300",
    "model.start_token=0",
    "model.pad_token=2",
    "processor=spectrogram",
    "processor.config.chunk_length=1",
    "tokenizer=bpe",
    "tokenizer.vocab=300",
]  # fmt: skip
"""What hears a second at most."""


def sung(text: str, rate: int = RATE) -> NDArray[np.float32]:
    """Return 60 ms of a tone for each letter."""
    moments = np.arange(int(0.06 * rate)) / rate
    return np.concatenate([0.5 * np.sin(2 * np.pi * TONES[letter] * moments) for letter in text]).astype(np.float32)


def write_clips(folder: Path, texts: list[str], **more: Any) -> Path:
    """Write a WAV file a text, and the table that names them; return the table."""
    rows = []
    for number, text in enumerate(texts):
        save(folder / f"clip{number}.wav", sung(text), RATE)
        rows.append({"audio": f"clip{number}.wav", "text": text, "label": text[0], **more})
    table = folder / "clips.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def texts(count: int = 24) -> list[str]:
    """Return different texts of four to eight letters."""
    draw = np.random.default_rng(0)
    return ["".join(draw.choice(list("abcd"), 3)) + " " + "".join(draw.choice(list("abcd"), 4)) for _ in range(count)]
