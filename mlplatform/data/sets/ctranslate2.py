"""Whisper's weights out of CTranslate2's model.bin, as Hugging Face's files name them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlplatform.errors import CheckpointError

Arrays = dict[str, NDArray[Any]]
TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
VERSION = 6
PARTS = {"self_attention": "self_attn", "attention": "encoder_attn"}
NORMS = {"self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm", "ffn": "final_layer_norm"}
VALUES = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}


def read(path: Path) -> Arrays:
    """Return the variables of a model.bin by their names.

    Raises:
        CheckpointError: it is of another version of the format, or cut short.
    """
    data, place = path.read_bytes(), 0

    def number(code: str) -> int:
        nonlocal place
        place += struct.calcsize(code)
        return struct.unpack_from(f"<{code}", data, place - struct.calcsize(code))[0]

    def text() -> str:
        nonlocal place
        size = number("H")
        place += size
        return data[place - size : place - 1].decode()

    try:
        if (version := number("I")) != VERSION:
            raise CheckpointError(f"{path}: version {version} of CTranslate2's format; {VERSION} is known here")
        _, _ = text(), number("I")  # the kind of model and its revision
        found: Arrays = {}
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            kind, size = number("B"), number("I")
            found[name] = np.frombuffer(data[place : place + size], TYPES[kind]).reshape(shape)
            place += size
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole model.bin of CTranslate2: {error}") from None
    return found


def whisper(found: Mapping[str, NDArray[Any]]) -> Arrays:
    """Return Whisper's tensors under Hugging Face's names; fused projections are taken apart."""
    named: Arrays = {"model.decoder.embed_tokens.weight": found["decoder/embeddings/weight"]}
    for name, array in found.items():
        tower, *rest = name.split("/")
        if rest[0] == "position_encodings":
            named[f"model.{tower}.embed_positions.weight"] = array
        elif rest[0] in ("conv1", "conv2", "layer_norm"):
            named[f"model.{tower}.{rest[0]}.{VALUES[rest[1]]}"] = array
        elif rest[0].startswith("layer_"):
            before = f"model.{tower}.layers.{rest[0].removeprefix('layer_')}"
            named |= {f"{before}.{inner}": part for inner, part in _of_layer(rest[1], rest[2], rest[3], array)}
    return named


def _of_layer(part: str, inner: str, value: str, array: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield Hugging Face's names of a layer's tensor, one for each projection in it."""
    value = VALUES[value]
    if inner == "layer_norm":
        yield f"{NORMS[part]}.{value}", array
    elif part == "ffn":
        yield f"fc{int(inner[-1]) + 1}.{value}", array
    else:
        fused = {"self_attention": ("qkv", "o"), "attention": ("q", "kv", "o")}[part][int(inner[-1])]
        for letter, one in zip(fused, np.split(array, len(fused)), strict=True):
            if (letter, value) != ("k", "bias"):  # it has none there, and zeros here
                yield f"{PARTS[part]}.{'out' if letter == 'o' else letter}_proj.{value}", one
