"""Changes of a training recording that leave its transcript as it is, one kind each; a task lists them under `augment`.

What they draw comes from the row's own generator, which depends on (seed, epoch, record), as with images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlplatform.data.sound import Samples
from mlplatform.errors import SpecError
from mlplatform.registry import Fraction, block


class SoundAugment:
    """One change: gets samples (n,) and returns them changed, perhaps of another number."""

    def __call__(self, samples: Samples, random: np.random.Generator) -> Samples:
        raise NotImplementedError


@block("sound_augment/pace")
class Pace(SoundAugment):
    """Play the recording faster or slower, its pitch with it: speed perturbation (Ko et al., 2015).

    Args:
        most: how much, each way: 0.1 draws a pace from 0.9 to 1.1.
    """

    def __init__(self, *, most: Fraction = 0.1) -> None:
        self.most = most

    def __call__(self, samples: Samples, random: np.random.Generator) -> Samples:
        pace = random.uniform(1 - self.most, 1 + self.most)
        places = np.arange(max(int(len(samples) / pace), 1)) * pace
        return np.interp(places, np.arange(len(samples)), samples).astype(np.float32)


@block("sound_augment/noise")
class Noise(SoundAugment):
    """Add white noise.

    Args:
        decibels: how much louder the recording is than the noise, least and most.
    """

    def __init__(self, *, decibels: tuple[float, float] = (10.0, 40.0)) -> None:
        if decibels[0] > decibels[1]:
            raise SpecError(f"decibels=[{decibels[0]}, {decibels[1]}]: the least, then the most")
        self.decibels = decibels

    def __call__(self, samples: Samples, random: np.random.Generator) -> Samples:
        loud = np.sqrt(np.mean(samples**2, dtype=np.float64)) * 10 ** (-random.uniform(*self.decibels) / 20)
        return samples + (loud * random.standard_normal(len(samples))).astype(np.float32)


def played(samples: Samples, changes: Sequence[SoundAugment], random: np.random.Generator | None) -> Samples:
    """Return samples after all the changes; in validation, where there is no generator, as they are."""
    if random is not None:
        for change in changes:
            samples = change(samples, random)
    return samples
