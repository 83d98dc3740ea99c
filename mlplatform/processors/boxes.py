"""From what a detector returns to boxes in pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlplatform.blocks.boxes import corners
from mlplatform.errors import DataError


def detected_objects(
    logits: Tensor,
    pred_boxes: Tensor,
    sizes: Sequence[tuple[int, int]] | Tensor | None = None,
    *,
    threshold: float = 0.5,
) -> list[dict[str, Tensor]]:
    """Return for each image the objects found: `scores` (n,), `labels` (n,), `boxes` (n, 4) by corners.

    The same as `post_process_object_detection` of Hugging Face's DETR processor.

    Args:
        logits: (batch, slots, labels + 1), the last of them for an empty slot.
        pred_boxes: (batch, slots, 4): centre x, centre y, width, height as shares of the image.
        sizes: each image's (height, width) in pixels, before it was resized or padded; boxes are then in those pixels,
            without them shares of the image.
        threshold: the score an object has more than.

    Raises:
        DataError: logits, boxes and sizes are not of as many images.
    """
    if logits.shape[:2] != pred_boxes.shape[:2] or pred_boxes.shape[-1] != 4:
        raise DataError(
            f"logits are {list(logits.shape)} and pred_boxes {list(pred_boxes.shape)}; (batch, slots, labels + 1) and "
            "(batch, slots, 4) are needed"
        )
    scores, labels = logits.softmax(-1)[..., :-1].max(-1)
    boxes = corners(pred_boxes)
    if sizes is not None:
        if len(sizes) != len(logits):
            raise DataError(f"sizes are of {len(sizes)} images, the logits of {len(logits)}")
        height, width = torch.as_tensor(sizes, device=boxes.device).unbind(-1)
        boxes = boxes * torch.stack((width, height, width, height), -1)[:, None]
    kept = scores > threshold
    return [
        {"scores": s[k], "labels": n[k], "boxes": b[k]} for s, n, b, k in zip(scores, labels, boxes, kept, strict=True)
    ]
