"""Scenes made of real handwritten digits: something for detectors to find, with exact boxes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from mlplatform.data.record_sources import load_digits
from mlplatform.data.records import RecordSource
from mlplatform.data.tables import Place, Table
from mlplatform.errors import DataError
from mlplatform.registry import Fraction, Natural, Positive, Spec, block

VERSION = 1
SIDE = 8
"""Pixels of a digit's side in scikit-learn's set."""


@block("data/digit_scenes")
class DigitScenes(RecordSource):
    """Images with a few handwritten digits (scikit-learn's) at random places: `image`, `objects` {bbox, category}.

    The scenes are made, and the same for a seed; the digits are real, and those of held-out scenes in no other.

    Args:
        count: scenes to train on. held_out: scenes of the validation split. size: pixels of a side.
        most: digits on a scene; one at least. zoom: times a digit's 8 pixels, at most; one of 2 to this.
        seed: of the scenes.
        test: the share of the train scenes held out as a test split. steps: changes of rows, in order.
    """

    name = "digit_scenes"

    def __init__(
        self,
        *,
        count: Positive = 2000,
        held_out: Positive = 200,
        size: Positive = 64,
        most: Positive = 3,
        zoom: Positive = 3,
        seed: Natural = 0,
        test: Fraction = 0.0,
        steps: list[Annotated[Spec, "step"]] = [],  # noqa: B006
    ) -> None:
        if zoom < 2 or zoom * SIDE * 2 > size:
            raise DataError(f"data.zoom={zoom} makes digits of {zoom * SIDE} pixels; take 2 to {size // (2 * SIDE)}")
        self.counts, self.size, self.most, self.zoom, self.seed = (count, held_out), size, most, zoom, seed
        options = {"version": VERSION, "counts": self.counts, "size": size, "most": most, "zoom": zoom, "seed": seed}
        super().__init__(validation=0.0, test=test, fields={}, steps=steps, classes=None, skip=False, options=options)

    def tables(self) -> dict[str, list[Table]]:
        pixels, labels = load_digits()
        cut = len(labels) * 4 // 5  # digits of the first writers to train on, as the set has them in order of writers
        parts = {"train": (pixels[:cut], labels[:cut]), "validation": (pixels[cut:], labels[cut:])}
        return {split: [_Scenes(self, split, number, *part)] for number, (split, part) in enumerate(parts.items())}

    def content(self) -> str:
        pixels, labels = load_digits()
        return hashlib.sha256(pixels.tobytes() + bytes(labels)).hexdigest()


class _Scenes:
    """A table whose rows are drawn when they are asked for."""

    counted = "scene"

    def __init__(
        self, source: DigitScenes, split: str, number: int, pixels: np.ndarray[Any, Any], labels: Sequence[int]
    ) -> None:
        self.name, self.folder, self.number = f"digit_scenes, {split}", Path(), number
        self.size, self.most, self.zoom, self.seed = source.size, source.most, source.zoom, source.seed
        self.count, self.pixels, self.labels = source.counts[number], pixels, list(labels)

    def scan(self) -> Iterator[tuple[Place, dict[str, Any] | ValueError]]:
        for number in range(self.count):
            yield Place(number, number + 1), self.read(number)

    def read(self, key: int) -> dict[str, Any]:
        random = np.random.default_rng((self.seed, self.number, key))
        scene = random.integers(0, 40, (self.size, self.size)).astype(np.uint8)
        boxes: list[list[int]] = []
        classes: list[str] = []
        for _ in range(int(random.integers(1, self.most + 1))):
            chosen, zoom = int(random.integers(len(self.labels))), int(random.integers(2, self.zoom + 1))
            side = SIDE * zoom
            left, top = (int(x) for x in random.integers(0, self.size - side + 1, 2))
            if all(abs(left - x) > max(side, w) or abs(top - y) > max(side, h) for x, y, w, h in boxes):
                glyph = self.pixels[chosen].repeat(zoom, 0).repeat(zoom, 1)
                place = scene[top : top + side, left : left + side]
                np.maximum(place, glyph, out=place)
                boxes.append([left, top, side, side])
                classes.append(str(self.labels[chosen]))
        objects: Mapping[str, Any] = {"bbox": boxes, "category": classes}
        return {"image": scene, "objects": objects}
