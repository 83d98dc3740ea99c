"""Training on soft targets: smoothed classes, and images of a micro-batch that are mixed with one another.

What is drawn comes from the training's own random stream, whose state a checkpoint holds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mlplatform.registry import PositiveFloat, block


class Mix:
    """Mixes images (rows, channels, height, width) and the probabilities of their classes (rows, classes).

    Args:
        alpha: the first image's share is drawn from Beta(alpha, alpha): near 0 or 1 when small, even at 1.
    """

    def __init__(self, *, alpha: PositiveFloat) -> None:
        self.alpha = alpha

    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        share = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        others = torch.randperm(len(images)).to(images.device)
        images, share = self.mixed(images, images[others], share)
        return images, share * targets + (1 - share) * targets[others]

    def mixed(self, images: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
        """Return images of which about `share` is the first's, and what its share became."""
        raise NotImplementedError


@block("mix/mixup")
class Mixup(Mix):
    """Weighed sums of two images and of their classes. arXiv:1710.09412

    Args:
        alpha: the first image's share is drawn from Beta(alpha, alpha): near 0 or 1 when small, even at 1.
    """

    def __init__(self, *, alpha: PositiveFloat = 0.2) -> None:
        super().__init__(alpha=alpha)

    def mixed(self, images: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
        return share * images + (1 - share) * others, share


@block("mix/cutmix")
class CutMix(Mix):
    """A rectangle of each image is another's, and classes are weighed by area. arXiv:1905.04899

    Args:
        alpha: the first image's share is drawn from Beta(alpha, alpha): near 0 or 1 when small, even at 1.
    """

    def __init__(self, *, alpha: PositiveFloat = 1.0) -> None:
        super().__init__(alpha=alpha)

    def mixed(self, images: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
        height, width = images.shape[-2:]
        half = math.sqrt(1 - share) / 2
        rows, columns = (_around(int(torch.randint(side, ())), half * side, side) for side in (height, width))
        images = images.clone()
        images[..., rows, columns] = others[..., rows, columns]
        cut = (rows.stop - rows.start) * (columns.stop - columns.start)
        return images, 1 - cut / (height * width)


def _around(middle: int, half: float, side: int) -> slice:
    return slice(max(0, round(middle - half)), min(side, round(middle + half)))


def smoothed(targets: Tensor, share: float) -> Tensor:
    """Return probabilities (rows, classes) of which a share is spread evenly over the classes."""
    return targets * (1 - share) + share / targets.shape[-1]


def soft_cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of -sum_c q_c log p_c over rows, in fp32: logits and targets are (rows, classes)."""
    return -(targets.float() * logits.float().log_softmax(-1)).sum()
