"""What methods without a network reach on the held-out scenes of a detection recipe: the bar for its precision.

    python scripts/detection_baselines.py [OVERRIDES]

The overrides are those of `mlplatform train`: `recipes=detr`. The scores are the task's own (COCO's).

    mean boxes    on every image each class in the mean of its boxes, scored by how common it is: the simple baseline
    components    what is brighter than the noise falls into connected parts, a square around each, its class by
                  logistic regression on 8 x 8 pixels: made for digits on a dark ground, and for nothing else
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from held_out import Records, call, records_of
from PIL import Image

from mlplatform.errors import SpecError
from mlplatform.processors.image import pixels_of
from mlplatform.tasks.detection import Precision

Found = list[tuple[str, float, list[float]]]
"""Class, score, and box as left, top, width, height."""
BRIGHT = 60
"""Noise is darker than 40; the strokes of a digit are up to 255."""
LEAST = 12
"""Pixels of a part that may be a digit."""


def mean_boxes(train: Records) -> Callable[[Any], Found]:
    """Find on every image each class in the mean of its boxes."""
    boxes: dict[str, list[Any]] = defaultdict(list)
    for record in train:
        for box, name in zip(record["objects"]["bbox"], record["objects"]["category"], strict=True):
            boxes[name].append(box)
    total = sum(map(len, boxes.values()))
    said = [(name, len(some) / total, np.mean(some, 0).tolist()) for name, some in boxes.items()]
    return lambda record: said


def components(train: Records) -> Callable[[Any], Found]:
    """Find bright parts, and say by their pixels what they are."""
    from scipy.ndimage import find_objects, label
    from sklearn.linear_model import LogisticRegression

    crops, names = [], []
    for record in train:
        for box, name in zip(record["objects"]["bbox"], record["objects"]["category"], strict=True):
            crops.append(_crop(_grey(record), box))
            names.append(name)
    model = LogisticRegression(max_iter=500).fit(crops, names)

    def find(record: Any) -> Found:
        grey = _grey(record)
        parts: Any = label(grey > BRIGHT, np.ones((3, 3)))[0]  # type: ignore[index]
        found = []
        for rows, columns in find_objects(parts):
            high, wide = rows.stop - rows.start, columns.stop - columns.start
            if high * wide >= LEAST and max(high, wide) > 5:
                side = 8 * max(2, round(max(high, wide) / 8))  # digits are 8 pixels, enlarged a whole number of times
                left = (columns.start + columns.stop - side) / 2
                top = (rows.start + rows.stop - side) / 2
                box = [left, top, float(side), float(side)]
                shares = model.predict_proba([_crop(grey, box)])[0]
                found.append((str(model.classes_[shares.argmax()]), float(shares.max()), box))
        return found

    return find


def _grey(record: Any) -> np.ndarray[Any, Any]:
    return pixels_of(record["image"], record.place, False).mean(0)


def _crop(grey: np.ndarray[Any, Any], box: Sequence[float]) -> np.ndarray[Any, Any]:
    left, top, width, height = box
    corners = (round(left), round(top), round(left + width), round(top + height))
    cut = Image.fromarray(grey.astype(np.uint8)).crop(corners)
    return np.asarray(cut.resize((8, 8), Image.Resampling.BOX), float).reshape(-1) / 255


def precision(find: Callable[[Any], Found], held_out: Records) -> dict[str, float]:
    """Return COCO's scores of what a method finds."""
    numbers: dict[str, int] = {}
    measure = Precision()
    for record in held_out:
        found, objects = find(record), record["objects"]
        true = list(zip(objects["category"], objects["bbox"], strict=True))
        for name in [name for name, _, _ in found] + objects["category"]:
            numbers.setdefault(name, len(numbers))
        said = _boxes([(name, box) for name, _, box in found], numbers)
        measure.update([{**said, "scores": torch.tensor([score for _, score, _ in found])}], [_boxes(true, numbers)])
    return measure.compute()


def _boxes(objects: list[tuple[str, Sequence[float]]], numbers: dict[str, int]) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([list(box) for _, box in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {"boxes": boxes, "labels": torch.tensor([numbers[name] for name, _ in objects], dtype=torch.long)}


def report(overrides: Sequence[str], say: Callable[[str], None] = print) -> None:
    """Print the scores of each method on the validation split."""
    started = time.monotonic()
    _, reads, train, held_out = records_of(overrides)
    if set(reads.fields) != {"image", "objects"}:
        raise SpecError(f"these are for task=detection; this task reads {', '.join(reads.fields)}")
    records, held = list(train), list(held_out)
    say("map    map_50  map_75")
    for name, method in (("mean boxes", mean_boxes), ("components", components)):
        found = precision(method(records), held)
        say(f"{found['map']:.4f} {found['map_50']:.4f}  {found['map_75']:.4f}  {name}")
    say(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(call(report, sys.argv[1:]))
