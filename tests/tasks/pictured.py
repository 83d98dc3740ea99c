"""Small images of one colour, and small models that read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import mlplatform as mp
from mlplatform.models import build
from mlplatform.processors.image import ImageProcessor
from mlplatform.processors.tokenizer import Tokenizer
from mlplatform.processors.tokenizer import train as train_tokenizer

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (30, 30, 230), "white": (250, 250, 250)}
CAPTIONS = [f"a {colour} wall" for colour in COLOURS]
WORDS = [*CAPTIONS, "what color is the wall?", "is the wall red? yes no", "a picture of"]
TOWER = ["dim=32", "depth=2", "layer.attention.heads=2", "layer.mlp.width=48"]
SEES = [f"vision.trunk.{size}" for size in (*TOWER, "input.image_size=16", "input.patch=8")]
BLIP = [*SEES, *(f"text.trunk.{size}" for size in (*TOWER, "layer.cross.heads=2", "input.vocab=300"))]
ASKED = [
    *SEES,
    *(f"text.{tower}.{size}" for tower in ("encoder", "decoder") for size in (
        *TOWER, "layer.cross.heads=2", "input.vocab=300")),
]  # fmt: skip
LLAVA = [
    *SEES,
    *(f"language.trunk.{size}" for size in (*TOWER, "layer.attention.kv_heads=1", "input.vocab=300")),
]
MODELS = {"blip_tiny": BLIP, "blip_vqa": ASKED, "llava_tiny": LLAVA}
TOOLS = {
    "blip_tiny": ["tokenizer=masked_bpe", "tokenizer.vocab=300", "processor=vision"],
    "blip_vqa": ["tokenizer=masked_bpe", "tokenizer.vocab=300", "processor=vision"],
    "llava_tiny": ["tokenizer=visual_bpe", "processor=vision"],
}


def options(name: str) -> list[str]:
    """Return the overrides of a run with a small model and what prepares its inputs."""
    return [f"model={name}", *(f"model.{one}" for one in MODELS[name]), *TOOLS[name]]


def small(name: str) -> Any:
    """Return a small model, with weights large enough that its losses differ from a uniform guess."""
    return build(mp.compose(name, [*MODELS[name], "init.std=0.2"]), seed=0).eval()


def words(name: str) -> Tokenizer:
    """Return a tokenizer of the kind the model's texts need."""
    return train_tokenizer(WORDS, 300, "visual" if name == "llava_tiny" else "masked")


def processor(side: int = 16) -> ImageProcessor:
    kind = {"image_processor_type": "BlipImageProcessor", "size": {"height": side, "width": side}}
    return ImageProcessor(kind)


def picture(colour: str, seed: int = 0, width: int = 24) -> Image.Image:
    """Return a wall of a colour, with some dirt on it."""
    dirt = np.random.default_rng(seed).integers(-20, 21, (20, width, 3))
    return Image.fromarray((np.asarray(COLOURS[colour]) + dirt).clip(0, 255).astype(np.uint8))


def write_pictures(folder: Path, count: int = 24) -> list[tuple[str, str]]:
    """Write images; return (file name, colour) of each."""
    found = []
    for number, colour in zip(range(count), list(COLOURS) * count, strict=False):
        picture(colour, number).save(folder / f"wall{number}.png")
        found.append((f"wall{number}.png", colour))
    return found


def captions(folder: Path, count: int = 24) -> list[dict[str, Any]]:
    """Write images; return rows with a caption each."""
    return [{"image": name, "text": f"a {colour} wall"} for name, colour in write_pictures(folder, count)]


def questions(folder: Path, count: int = 24) -> list[dict[str, Any]]:
    """Write images; return a question of two kinds for each."""
    rows: list[dict[str, Any]] = []
    for name, colour in write_pictures(folder, count):
        rows.append({"image": name, "question": "what color is the wall?", "answer": [colour, f"a {colour} one"]})
        rows.append({"image": name, "question": "is the wall red?", "answer": "yes" if colour == "red" else "no"})
    return rows


def turns(*contents: Any) -> list[dict[str, Any]]:
    """Return turns of a user and the assistant, one after the other."""
    return [{"role": ("user", "assistant")[i % 2], "content": one} for i, one in enumerate(contents)]


def parts(*contents: str) -> list[dict[str, str]]:
    """Return the parts of a content: `image` stands for an image."""
    return [{"type": "image"} if one == "image" else {"type": "text", "text": one} for one in contents]


def asked(messages: Sequence[Any], *images: Any) -> dict[str, Any]:
    """Return the values of a row of the task visual_chat."""
    return {"messages": messages, "images": list(images)} if images else {"messages": messages}
