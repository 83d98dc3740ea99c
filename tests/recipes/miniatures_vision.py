"""Recipes of images with captions and with boxes made small: a few pictures, models of some thousand parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import mlplatform as mp


def clip(folder: Path) -> list[str]:
    """Squares of ten greys, each with its digit."""
    rows = []
    for number in range(40):
        pixels = np.full((28, 28), 25 * (number % 10), np.uint8)
        pixels[0, number % 28] = 200
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "label": str(number % 10)})
    for name, part in (("train", rows[:30]), ("validation", rows[30:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    files = [f"data.path={folder / 'train.jsonl'}", f"data.validation={folder / 'validation.jsonl'}"]
    towers = ("model.text.trunk", "model.vision.trunk")
    sizes = ("dim=16", "depth=1", "layer.attention.heads=2", "layer.mlp.width=16")
    return [*files, *(f"{tower}.{size}" for tower in towers for size in sizes)]


SCENES = ["data.count=60", "data.held_out=8"]
THIN = ["stem=8", "widths=[8, 8]", "depths=[1, 1]"]


def detr(folder: Path) -> list[str]:
    """Few scenes, thin towers, and a backbone that another run could have left."""
    sizes = ("dim=16", "depth=1", "layer.attention.heads=2", "layer.mlp.width=16")
    towers = [f"model.{tower}.{size}" for tower in ("encoder", "decoder") for size in sizes]
    mp.save(
        mp.build("resnet", [f"trunk.{size}" for size in (*THIN, "stages=[2]", "bottleneck=false")]), folder / "start"
    )
    backbone = [*(f"model.backbone.trunk.{size}" for size in THIN), f"init_parts={{backbone: {folder / 'start'}}}"]
    return [*SCENES, *towers, "model.decoder.layer.cross.heads=2", *backbone]


def resnet_digits(folder: Path) -> list[str]:
    """Few scenes, thin stages."""
    return [*SCENES, *(f"model.trunk.{size}" for size in THIN)]


MINIATURES: dict[str, Callable[[Path], list[str]]] = {"clip": clip, "detr": detr, "resnet_digits": resnet_digits}
