"""What is on an image and where: DETR. arXiv:2005.12872"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.blocks.boxes import corners
from mlplatform.context import Output
from mlplatform.data.collate import IGNORED, Row
from mlplatform.data.examples import Tools, stacked
from mlplatform.data.fields import Class, Field, Picture, Values, named
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Reads, Record
from mlplatform.errors import SpecError
from mlplatform.processors.boxes import detected_objects
from mlplatform.processors.image import pixels_of
from mlplatform.registry import Fraction, block
from mlplatform.tasks.record_task import RecordTask, check_classes
from mlplatform.tasks.scores import need_package
from mlplatform.tasks.seen import Seen
from mlplatform.tasks.task import Batch


@block("task/detection")
class Detection(RecordTask):
    """Fields: `image`, and `objects` as COCO has them: {bbox: [[left, top, width, height] in pixels], category: [...]}.

    Metrics: mean average precision over IoU 0.5 to 0.95, at 0.5 and 0.75, and recall of a hundred objects (COCO's).

    Args:
        threshold: the score an object of the predictions has more than.
        flip: the share of training images that are mirrored, with their boxes.
    """

    reads_key = "pixel_values"
    class_field = "objects"
    monitor = "validation/map"
    own_keys = (*RecordTask.own_keys, "classes", "boxes", "sizes")

    def __init__(self, model: nn.Module, *, threshold: Fraction = 0.5, flip: Fraction = 0.5) -> None:
        super().__init__(model)
        need_package("pycocotools", "mean average precision", "task")
        self.threshold, self.flip = threshold, flip

    def check_model(self, model: nn.Module) -> None:
        if getattr(getattr(model, "head", None), "task", "") != "detection":
            told = f"task=detection does not fit this {getattr(model, 'kind', 'model')}"
            raise SpecError(f"{told}: it needs a detector with a head 'detection', such as model=detr")

    def reads(self) -> Reads:
        return Reads({"image": Picture(), "objects": Objects()}, check=boxes_are_inside)

    def examples(self, tools: Tools) -> BoxedImages:
        return BoxedImages(tools.need("processor", self.kind), tools.numbers("objects"), self.flip)

    def prepare_measures(self, tools: Tools) -> None:
        check_classes(self.model, self.model.head.labels, tools.classes["objects"])  # type: ignore[union-attr, arg-type]
        self.measures = {"map": Precision()}

    def targets(self, batch: Batch) -> Tensor:
        return (batch["classes"] != IGNORED).sum()

    def inputs(self, batch: Batch) -> Any:
        """Return what the model is called with: labels are a list, as many boxes as each image has."""
        labels = []
        for classes, boxes in zip(batch["classes"], batch["boxes"], strict=True):
            there = classes != IGNORED
            labels.append({"class_labels": classes[there], "boxes": boxes[there]})
        return {**super().inputs(batch), "labels": labels}

    def learned(self, batch: Batch) -> Output:
        return self.model(**self.inputs(batch))

    def observe(self, batch: Batch, out: Output) -> None:
        found = detected_objects(out.logits.float(), out.pred_boxes.float(), threshold=0.0)
        true = [{"labels": one["class_labels"], "boxes": corners(one["boxes"])} for one in self.inputs(batch)["labels"]]
        self.measures["map"].update(found, true)

    def predictions(self, batch: Batch, out: Output) -> list[dict[str, Any]]:
        """Return the objects of each image, boxes as left, top, width, height in its own pixels."""
        names, shape = self.tools.classes["objects"], batch["pixel_values"].shape[-2:]
        seen = batch["sizes"]  # (rows, 4): height and width as the model sees it, and of the image itself
        scale = torch.stack((seen[:, 3] / seen[:, 1], seen[:, 2] / seen[:, 0]), -1)
        found = detected_objects(out.logits.float(), out.pred_boxes.float(), threshold=self.threshold)
        told = []
        for one, (x, y) in zip(found, scale.tolist(), strict=True):
            boxes = one["boxes"] * one["boxes"].new_tensor([shape[1] * x, shape[0] * y] * 2)
            left, top, right, bottom = boxes.unbind(-1)
            boxes = torch.stack((left, top, right - left, bottom - top), -1)
            objects = zip(one["labels"].tolist(), one["scores"].tolist(), boxes.tolist(), strict=True)
            told.append({"objects": [{"category": names[c], "score": s, "bbox": b} for c, s, b in objects]})
        return told


class Precision(Seen):
    """COCO's mean average precision, by torchmetrics and pycocotools."""

    higher_is_better = True
    names = ("map", "map_50", "map_75", "mar_100")

    def update(self, found: list[dict[str, Tensor]], true: list[dict[str, Tensor]]) -> None:
        """Add images: what was found (boxes, scores, labels) and what is there (boxes, labels)."""
        self.add([found, true])

    def compute(self) -> dict[str, float]:
        """Return the metrics by `names`; -1 becomes 0: there was nothing to find."""
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(sync_on_compute=False)
        metric.warn_on_many_detections = False
        for found, true in self.of_all_ranks():
            metric.update(found, true)
        told = metric.compute()
        return {name: max(0.0, float(told[name])) for name in self.names}


class Objects(Field):
    """COCO's objects on an image: `bbox`, a list of [left, top, width, height] in pixels, and `category`, a list."""

    name, holds_classes = "objects", True

    def clean(self, value: Any, folder: Path) -> dict[str, list[Any]]:
        lists = isinstance(value, Mapping) and all(isinstance(value.get(key), list) for key in ("bbox", "category"))
        if not lists:
            wanted = "{bbox: [[left, top, width, height], ...], category: [...]}"
            raise ValueError(f"is {named(value)}, and {wanted} is needed")
        boxes, classes = list(value["bbox"]), [Class().clean(one, folder) for one in value["category"]]
        if len(boxes) != len(classes):
            raise ValueError(f"has {len(boxes)} boxes and {len(classes)} categories; each box has one")
        for number, box in enumerate(boxes, 1):
            if (
                not isinstance(box, list)
                or len(box) != 4
                or not all(isinstance(x, int | float) and np.isfinite(x) for x in box)
            ):
                raise ValueError(f"has a box {number} that is {box}; left, top, width and height in pixels are needed")
            if box[2] <= 0 or box[3] <= 0:
                raise ValueError(f"has a box {number} of {box[2]} x {box[3]} pixels; it has no area")
        return {"bbox": [[float(x) for x in box] for box in boxes], "category": classes}

    def classes(self, value: Any) -> list[str]:
        return value["category"]


def boxes_are_inside(values: Values) -> None:
    """Raise ValueError when a box reaches out of its image by more than a pixel."""
    height, width = pixels_of(values["image"], "the image", True).shape[1:]
    for number, (left, top, wide, high) in enumerate(values["objects"]["bbox"], 1):
        if left < -1 or top < -1 or left + wide > width + 1 or top + high > height + 1:
            told = f"from {left:g}, {top:g} to {left + wide:g}, {top + high:g}"
            raise ValueError(f"'objects' has a box {number} {told}, outside the image of {width} x {height} pixels")


class BoxedImages:
    """Rows of pixel values, classes (n,), boxes (n, 4) by centre as shares of the image, and sizes."""

    def __init__(self, processor: Any, numbers: Mapping[str, int], flip: float) -> None:
        self.processor, self.numbers, self.flip = processor, dict(numbers), flip

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        height, width = pixels_of(record["image"], record.place, True).shape[1:]
        made = self.processor(record["image"])
        pixels = made["pixel_values"][0].numpy()
        boxes = np.asarray(record["objects"]["bbox"], dtype=np.float32).reshape(-1, 4)
        centres = boxes + np.concatenate([boxes[:, 2:] / 2, np.zeros_like(boxes[:, 2:])], 1)
        centres = (centres / np.asarray([width, height, width, height], np.float32)).astype(np.float32)
        if random is not None and random.random() < self.flip:
            pixels, centres = pixels[..., ::-1].copy(), np.abs(np.asarray([1, 0, 0, 0], np.float32) - centres)
        return {
            "pixel_values": pixels,
            "classes": np.asarray([self.numbers[name] for name in record["objects"]["category"]], dtype=np.int64),
            "boxes": centres,
            "sizes": np.asarray([*pixels.shape[1:], height, width]),
        }

    def __call__(self, rows: list[Row]) -> Batch:
        """Return a micro-batch: images filled up to the largest at the right and below, boxes as shares of that."""
        height, width = (max(row.arrays["pixel_values"].shape[axis] for row in rows) for axis in (1, 2))
        pixels, masks, moved = [], [], []
        for row in rows:
            image = torch.from_numpy(row.arrays["pixel_values"])
            rest = (0, width - image.shape[2], 0, height - image.shape[1])
            pixels.append(F.pad(image, rest))
            masks.append(F.pad(torch.ones(image.shape[1:], dtype=torch.long), rest))
            share = np.asarray([image.shape[2] / width, image.shape[1] / height] * 2, np.float32)
            kept = {name: row.arrays[name] for name in ("classes", "sizes")}
            moved.append(Row({**kept, "boxes": row.arrays["boxes"] * share}, row.seed, row.epoch, row.number))
        batch = stacked(moved, {"classes": IGNORED, "boxes": 0.0})
        return {"pixel_values": torch.stack(pixels), "pixel_mask": torch.stack(masks), **batch}
