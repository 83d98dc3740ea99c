"""How well vectors of texts and images find each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from mlplatform.tasks.seen import Seen

DEPTHS = (1, 5, 10)
ROWS = 1024
"""Vectors compared with all others at a time."""


class Recalls(Seen):
    """The share of images whose own text is among the k nearest, and of texts whose image is; all pairs compete."""

    higher_is_better = True
    names = tuple(f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10))

    def update(self, texts: Tensor, images: Tensor) -> None:
        """Add pairs of vectors of unit length (pairs, width)."""
        self.add([texts, images])

    def compute(self) -> dict[str, float]:
        """Return `image_to_text_r1` and so on."""
        texts, images = (torch.cat(vectors) for vectors in zip(*self.of_all_ranks(), strict=True))
        told: dict[str, float] = {}
        for name, own, others in (("image_to_text", images, texts), ("text_to_image", texts, images)):
            ranks = torch.cat([_ranks(own[i : i + ROWS], others, i) for i in range(0, len(own), ROWS)])
            told |= {f"{name}_r{k}": float((ranks < k).float().mean()) for k in DEPTHS}
        return told


def _ranks(own: Tensor, others: Tensor, start: int) -> Tensor:
    """Return how many of the others are nearer to each vector than the one of its own number; ties count as nearer."""
    scores = own @ others.t()
    places = torch.arange(start, start + len(own), device=own.device)
    right = scores.gather(1, places[:, None])
    return (scores >= right).sum(1) - 1


class ZeroShot(Metric):
    """The share of images whose nearest class is their own.

    Attributes:
        classes: the vectors of the classes (classes, width), set before a pass.
    """

    higher_is_better = True
    full_state_update = False
    names = ("zero_shot_accuracy",)
    right: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.classes: Any = None
        self.add_state("right", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, images: Tensor, labels: Tensor) -> None:
        """Add vectors of images (images, width) and their classes (images,), -100 for none."""
        there = labels >= 0
        best = (images[there] @ self.classes.to(images).t()).argmax(-1)
        self.right += (best == labels[there]).sum()
        self.count += there.sum()

    def compute(self) -> dict[str, float]:
        """Return `zero_shot_accuracy`."""
        return {"zero_shot_accuracy": float(self.right / self.count.clamp(min=1))}
