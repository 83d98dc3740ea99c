"""Recipes of texts about images made small: images of one colour, and models of a few thousand parameters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

import mlplatform as mp

COLOURS = ("red", "green", "blue", "white")
SIZES = ("dim=16", "depth=1", "layer.attention.heads=2", "layer.mlp.width=24")
EYES = [f"trunk.{size}" for size in (*SIZES, "context_length=5", "input.image_size=16", "input.patch=8")]
SEES = [f"model.vision.{size}" for size in EYES]


def _data(folder: Path, row: Callable[[str], Mapping[str, Any]]) -> list[str]:
    """Write an image and a row of a colour each; return the overrides that name them."""
    rows = []
    for number, colour in enumerate(COLOURS * 5):
        Image.new("RGB", (16, 16), colour).save(folder / f"{number}.png")
        rows.append(json.dumps({"image": f"{number}.png", "number": number, **row(colour)}))
    table = folder / "colours.jsonl"
    table.write_text("\n".join(rows) + "\n")
    held_out = folder / "held_out.jsonl"
    held_out.write_text("\n".join(rows[:4]) + "\n")
    return [f"data.path={table}", f"data.validation={held_out}", "batch.workers=0"]


def blip_captions(folder: Path) -> list[str]:
    writes = [f"model.text.trunk.{size}" for size in (*SIZES, "layer.cross.heads=2")]
    return [*_data(folder, lambda colour: {"text": f"a {colour} wall"}), *SEES, *writes]


def llava_vqa(folder: Path) -> list[str]:
    writes = [f"model.language.trunk.{size}" for size in (*SIZES, "layer.attention.kv_heads=1")]
    asked = _data(folder, lambda colour: {"question": "what color is it?", "answer": colour})
    mp.save(mp.build("clip_vision", EYES), folder / "start")
    return [*asked, *SEES, *writes, f"init_parts={{vision: {folder / 'start'}}}"]


def clip_shapes(folder: Path) -> list[str]:
    reads = [f"model.text.trunk.{size}" for size in SIZES]
    return [*_data(folder, lambda colour: {"text": f"a {colour} wall"}), *SEES, *reads]


MINIATURES: dict[str, Callable[[Path], list[str]]] = {
    made.__name__: made for made in (blip_captions, clip_shapes, llava_vqa)
}
"""Recipe -> what writes its miniature's data into a folder and returns the overrides that shrink it."""
