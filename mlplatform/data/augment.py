"""Changes of a training image that leave its class as it is, one kind each; a task lists them under `augment`.

They come before the processor, which then gives the image the model's size. What they draw comes from the row's own
generator, which depends on (seed, epoch, record): neither workers nor a resume change an image.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlplatform.data.records import Record
from mlplatform.errors import SpecError
from mlplatform.processors.image import pixels_of
from mlplatform.processors.image_steps import Pixels
from mlplatform.registry import Fraction, Natural, Positive, block

MAGNITUDES = 31
"""Levels of strength RandAugment has."""
TRIES = 10


class Augment:
    """One change: gets the bytes of an image (channels, height, width) and returns them changed."""

    def __call__(self, image: Pixels, random: np.random.Generator) -> Pixels:
        raise NotImplementedError


@block("augment/mirror")
class Mirror(Augment):
    """Left becomes right.

    Args:
        share: of the images.
    """

    def __init__(self, *, share: Fraction = 0.5) -> None:
        self.share = share

    def __call__(self, image: Pixels, random: np.random.Generator) -> Pixels:
        return image[..., ::-1].copy() if random.random() < self.share else image


@block("augment/shift")
class Shift(Augment):
    """Move the image by a few pixels; its edge fills what gets free.

    Args:
        most: pixels, each way.
    """

    def __init__(self, *, most: Positive = 4) -> None:
        self.most = most

    def __call__(self, image: Pixels, random: np.random.Generator) -> Pixels:
        height, width = image.shape[1:]
        wide = np.pad(image, ((0, 0), (self.most, self.most), (self.most, self.most)), mode="edge")
        top, left = (int(start) for start in random.integers(0, 2 * self.most + 1, 2))
        return wide[:, top : top + height, left : left + width]


@block("augment/crop")
class Crop(Augment):
    """Cut out a part of any size and shape within limits, as Inception did (arXiv:1409.4842).

    Args:
        area: share of the image's area, least and most.
        ratio: width over height of the part, least and most.
    """

    def __init__(self, *, area: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (0.75, 1.3333)) -> None:
        for name, (least, most), limit in (("area", area, 1.0), ("ratio", ratio, math.inf)):
            if not 0 < least <= most <= limit:
                raise SpecError(
                    f"{name}=[{least}, {most}]: the least and the most, above 0{' and up to 1' * (limit == 1)}"
                )
        self.area, self.ratio = area, ratio

    def __call__(self, image: Pixels, random: np.random.Generator) -> Pixels:
        height, width = image.shape[1:]
        for _ in range(TRIES):
            area = height * width * random.uniform(*self.area)
            least, most = (math.log(limit) for limit in self.ratio)
            ratio = math.exp(random.uniform(least, most))
            high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < high <= height and 0 < wide <= width:
                top, left = int(random.integers(height - high + 1)), int(random.integers(width - wide + 1))
                return image[:, top : top + high, left : left + wide]
        return image


@block("augment/rand_augment")
class RandAugment(Augment):
    """Some of fourteen changes of colour and shape, drawn at random, all of one strength. arXiv:1909.13719

    Computed by torchvision (`pip install mlplatform[vision]`).

    Args:
        operations: changes of an image, one after the other. magnitude: their strength, 0 to 30.
    """

    def __init__(self, *, operations: Positive = 2, magnitude: Natural = 9) -> None:
        if magnitude >= MAGNITUDES:
            raise SpecError(f"magnitude={magnitude}; it is 0 to {MAGNITUDES - 1}")
        if importlib.util.find_spec("torchvision") is None:
            raise SpecError("rand_augment needs torchvision; install it with: pip install 'mlplatform[vision]'")
        self.operations, self.magnitude = operations, magnitude

    def __call__(self, image: Pixels, random: np.random.Generator) -> Pixels:
        import torch
        from torchvision.transforms import v2

        change = v2.RandAugment(self.operations, self.magnitude, MAGNITUDES)
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own stream
            torch.manual_seed(int(random.integers(2**63)))
            return change(torch.from_numpy(np.array(image))).numpy()


def shown(record: Record, changes: Sequence[Augment], random: np.random.Generator | None) -> Any:
    """Return a record's `image` as the processor gets it: after all the changes; in validation, as it is."""
    if random is None or not changes:
        return record["image"]
    pixels = pixels_of(record["image"], record.place, False)
    for change in changes:
        pixels = change(pixels, random)
    return pixels
