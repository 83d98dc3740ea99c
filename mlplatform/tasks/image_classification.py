"""A class for an image. arXiv:2010.11929"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch.nn.functional as F
from torch import nn

from mlplatform.context import Output
from mlplatform.data.augment import Augment, shown
from mlplatform.data.collate import Row
from mlplatform.data.examples import Tools, stacked
from mlplatform.data.fields import Class, Picture
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Reads, Record
from mlplatform.registry import Fraction, Spec, block
from mlplatform.tasks.mixing import smoothed, soft_cross_entropy_sum
from mlplatform.tasks.one_class import OneClass
from mlplatform.tasks.task import Batch


@block("task/image_classification")
class ImageClassification(OneClass):
    """Fields: `image` and `label`. Metrics: accuracy, macro F1, Matthews correlation.

    Args:
        augment: changes of a training image, in order: `[{kind: rand_augment}, {kind: mirror}]`.
        mix: mixes the images of a micro-batch in training: `{kind: mixup, alpha: 0.2}` or `{kind: cutmix}`.
        label_smoothing: the share of a training image's class that is spread evenly over all. arXiv:1512.00567
    """

    reads_key = "pixel_values"

    def __init__(
        self,
        model: nn.Module,
        *,
        augment: list[Annotated[Spec, "augment"]] = [],  # noqa: B006  (read as data, never changed)
        mix: Annotated[Spec, "mix"] | None = None,
        label_smoothing: Fraction = 0.0,
    ) -> None:
        super().__init__(model)
        self.augment: list[Augment] = [change.build() for change in augment]
        self.mix = mix.build() if mix is not None else None
        self.label_smoothing = label_smoothing

    def reads(self) -> Reads:
        return Reads({"image": Picture(), "label": Class()})

    def examples(self, tools: Tools) -> LabelledImages:
        return LabelledImages(tools.need("processor", self.kind), tools.numbers("label"), self.augment)

    def learned(self, batch: Batch) -> Output:
        if self.mix is None and not self.label_smoothing:
            return super().learned(batch)
        images, labels = batch["pixel_values"], batch["labels"]
        count: int = self.model.head.out.out_features  # type: ignore[union-attr,assignment]
        targets = smoothed(F.one_hot(labels, count).to(images.dtype), self.label_smoothing)
        if self.mix is not None:
            images, targets = self.mix(images, targets)
        out = self.model(**{**self.inputs(batch), "pixel_values": images, "labels": None})
        out.loss_sum, out.loss_count = soft_cross_entropy_sum(out.logits, targets), self.targets(batch)
        return out


class LabelledImages:
    """Rows of pixel values."""

    def __init__(self, processor: Any, numbers: Mapping[str, int], augment: Sequence[Augment]) -> None:
        self.processor, self.numbers, self.augment = processor, dict(numbers), list(augment)

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        image = shown(record, self.augment, random)
        pixels = self.processor(image)["pixel_values"][0].numpy()
        return {"pixel_values": pixels, "labels": np.asarray(self.numbers[record["label"]])}

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {})
