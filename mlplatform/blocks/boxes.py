"""Boxes, and which predicted one stands for which true one. Shapes: (..., 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mlplatform.errors import SpecError

Target = Mapping[str, Tensor]
"""What is on one image: class_labels (n,) int, boxes (n, 4) as centre x, centre y, width, height from 0 to 1."""


def corners(boxes: Tensor) -> Tensor:
    """(centre x, centre y, width, height) -> (left, top, right, bottom)"""
    x, y, width, height = boxes.unbind(-1)
    return torch.stack((x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height), -1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the generalized intersection over union of boxes given by corners, from -1 to 1. arXiv:1902.09630

    a and b are (..., 4) of shapes that broadcast: (n, 1, 4) and (m, 4) give all pairs (n, m).
    """
    area_a, area_b = ((box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) for box in (a, b))
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = area_a + area_b - inner
    return inner / union - (outer - union) / outer


@torch.no_grad()
def match(
    logits: Tensor, boxes: Tensor, targets: Sequence[Target], costs: tuple[float, float, float]
) -> list[tuple[Tensor, Tensor]]:
    """Pair predictions with true objects so that the sum of costs is least (the Hungarian method). arXiv:2005.12872

    Args:
        logits: (batch, slots, classes + 1). boxes: (batch, slots, 4), by centre.
        costs: of a class (minus its probability), of a box's L1 distance, of its generalized IoU (minus it).

    Returns:
        For each image the numbers of the slots and of the objects that go together.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError:
        raise SpecError("the loss of detection needs scipy, which is not installed; pip install scipy") from None
    true = torch.cat([target["boxes"] for target in targets])
    classes = torch.cat([target["class_labels"] for target in targets])
    given = boxes.flatten(0, 1)  # every slot of the batch with every object at once: many small steps take longer
    cost = costs[1] * torch.cdist(given, true, p=1)
    cost = cost + costs[0] * -logits.softmax(-1).flatten(0, 1)[:, classes]
    cost = cost + costs[2] * -generalized_iou(corners(given)[:, None], corners(true))
    most = torch.finfo(cost.dtype).max  # a pair that is no number is taken last
    cost = cost.nan_to_num(most, most, most).cpu().unflatten(0, boxes.shape[:2])
    found = []
    for number, part in enumerate(cost.split([len(target["boxes"]) for target in targets], -1)):
        slots, objects = linear_sum_assignment(part[number])
        found.append((torch.as_tensor(slots), torch.as_tensor(objects)))
    return found
