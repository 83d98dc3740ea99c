"""The head that says what is on an image and where, as a set of boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.blocks.boxes import Target, corners, generalized_iou, match
from mlplatform.context import Context, Output
from mlplatform.errors import DataError
from mlplatform.registry import NonNegativeFloat, Positive, block


@block("head/detection")
class Detection(nn.Module):
    """A class, or none, and a box for every slot; the loss pairs slots and true objects one to one. arXiv:2005.12872

    Args:
        labels: classes; one more output is for an empty slot.
        box_layers: of the network that gives the box, relu between them.
        class_cost, box_cost, giou_cost: what a pair costs when slots and objects are paired; HF's `class_cost`,
            `bbox_cost`, `giou_cost`.
        box_weight, giou_weight: of the losses of a pair beside its class's 1; HF's `bbox_loss_coefficient`,
            `giou_loss_coefficient`.
        empty_weight: of an empty slot's class; HF's `eos_coefficient`.
        auxiliary: the loss is also taken after every layer before the last.
    """

    task = "detection"

    def __init__(
        self,
        dim: int,
        *,
        labels: Positive,
        box_layers: Positive = 3,
        class_cost: NonNegativeFloat = 1.0,
        box_cost: NonNegativeFloat = 5.0,
        giou_cost: NonNegativeFloat = 2.0,
        box_weight: NonNegativeFloat = 5.0,
        giou_weight: NonNegativeFloat = 2.0,
        empty_weight: NonNegativeFloat = 0.1,
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        self.classes = nn.Linear(dim, labels + 1)
        widths = [dim] * box_layers + [4]
        self.boxes = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.labels, self.costs = labels, (class_cost, box_cost, giou_cost)
        self.weights = {"loss_ce": 1.0, "loss_bbox": box_weight, "loss_giou": giou_weight}
        self.empty_weight, self.auxiliary = empty_weight, auxiliary

    def forward(self, x: Tensor, context: Context) -> Output:
        """(batch, slots, dim) -> logits (batch, slots, labels + 1), pred_boxes (batch, slots, 4) by centre, 0 to 1"""
        y = x
        for layer in self.boxes[:-1]:
            y = F.relu(layer(y))
        return Output(logits=self.classes(x), pred_boxes=self.boxes[-1](y).sigmoid())

    def loss(self, x: Tensor, labels: Sequence[Target], context: Context) -> tuple[Tensor, Tensor]:
        """Labels: for each image `class_labels` (n,) and `boxes` (n, 4) by centre, 0 to 1; counted are all boxes."""
        return self.total(self.losses(self.forward(x, context), labels), labels)

    def losses(self, out: Output, labels: Sequence[Target]) -> dict[str, Tensor]:
        """Return the losses by HF's names, each a mean over the batch. Raises DataError for labels that don't fit."""
        self._check(out.logits, labels)
        pairs = match(out.logits, out.pred_boxes, labels, self.costs)
        images = torch.cat([torch.full_like(slots, i) for i, (slots, _) in enumerate(pairs)])
        slots = torch.cat([slots for slots, _ in pairs])
        found = [
            {key: target[key][objects] for key in target} for target, (_, objects) in zip(labels, pairs, strict=True)
        ]
        true = torch.full(out.logits.shape[:2], self.labels, device=out.logits.device)
        true[images, slots] = torch.cat([target["class_labels"] for target in found])
        weight = out.logits.new_ones(self.labels + 1)
        weight[-1] = self.empty_weight
        given, boxes = out.pred_boxes[images, slots], torch.cat([target["boxes"] for target in found])
        count = max(1, sum(len(target["boxes"]) for target in labels))
        filled = (out.logits.argmax(-1) != self.labels).sum(1)
        there = torch.tensor([len(target["boxes"]) for target in labels], device=filled.device)
        return {
            "loss_ce": F.cross_entropy(out.logits.transpose(1, 2), true, weight),
            "loss_bbox": (given - boxes).abs().sum() / count,
            "loss_giou": (1 - generalized_iou(corners(given), corners(boxes))).sum() / count,
            "cardinality_error": F.l1_loss(filled.float(), there.float()),
        }

    def total(self, losses: Mapping[str, Tensor], labels: Sequence[Target]) -> tuple[Tensor, Tensor]:
        """Return (weighted sum of losses, of all layers, times the boxes; number of boxes)."""
        weighed = [self.weights[word] * losses[key] for key in losses for word in self.weights if key.startswith(word)]
        count = sum(len(target["boxes"]) for target in labels)
        total = torch.stack(weighed).sum() * max(1, count)
        return total, torch.tensor(count, device=total.device)

    def _check(self, logits: Tensor, labels: Sequence[Target]) -> None:
        if len(labels) != len(logits):
            raise DataError(f"labels are of {len(labels)} images, the batch has {len(logits)}")
        for number, target in enumerate(labels):
            classes, boxes = target["class_labels"], target["boxes"]
            if boxes.ndim != 2 or boxes.shape[-1] != 4 or len(boxes) != len(classes):
                raise DataError(
                    f"labels.{number}: boxes is {list(boxes.shape)} beside {len(classes)} class_labels; "
                    f"({len(classes)}, 4) is needed"
                )
            if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < self.labels:
                raise DataError(
                    f"labels.{number}: class_labels has {int(classes.max())}; the head's are 0 to {self.labels - 1}"
                )
            if (boxes[:, 2:] < 0).any():
                raise DataError(f"labels.{number}: a box has a width or height below 0; boxes are by centre, 0 to 1")
