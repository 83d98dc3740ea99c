"""Recordings with limits, and with transcripts that must fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from mlplatform.data.fields import Sound, Values
from mlplatform.data.packing import Arrays
from mlplatform.data.sound import at_rate, length, read
from mlplatform.data.sound_augment import SoundAugment, played
from mlplatform.errors import listing


class Recording(Sound):
    """A recording of so many seconds.

    Args:
        shortest, longest: in seconds; None for no limit.
    """

    def __init__(self, shortest: float = 0.0, longest: float | None = None) -> None:
        self.shortest, self.longest = shortest, longest
        self.name = f"audio of {shortest} to {longest} s"

    def verify(self, value: Any) -> None:
        samples, rate = read(value)
        seconds = len(samples) / rate
        if seconds < self.shortest or (self.longest is not None and seconds > self.longest):
            most = "" if self.longest is None else f" and at most {self.longest:g}"
            told = f"lasts {seconds:.2f} s, and at least {self.shortest:g}{most} are wanted"
            raise ValueError(f"{told} (task.shortest, task.longest)")


@dataclass(frozen=True)
class Spelled:
    """Looks whether a transcript can be spelled over the frames of its recording: `text` and `audio` of a row.

    CTC says one character a frame, and a blank between two alike.

    Args:
        convolutions: (kernel, stride) of each convolution that makes frames of samples.
        rate: samples a second the model hears.
        letters: the characters there are; None where they are yet to be found.
        space: the character that stands between words in the vocabulary, and so can be none of a transcript.
    """

    convolutions: tuple[tuple[int, int], ...]
    rate: int
    letters: frozenset[str] | None = None
    space: str = "|"

    @property
    def key(self) -> str:
        letters = None if self.letters is None else "".join(sorted(self.letters))
        return f"spelled {self.convolutions} {self.rate} {letters} {self.space}"

    def __call__(self, values: Values) -> None:
        text, known = values["text"], self.letters
        strange = [one for one in text if one == self.space or (known is not None and one not in known)]
        if strange:
            among = "" if known is None else f", which has {listing(sorted(known), 60)}"
            told = f"'text' has {strange[0]!r}, which is no character of the vocabulary{among}"
            raise ValueError(f"{told}; take it out with data.steps (lower, replace)")
        needed, frames = len(text) + repeats(text), self.frames(length(values["audio"], self.rate))
        if needed > frames:
            told = f"'text' needs {needed} frames ({len(text)} characters, {repeats(text)} like the one before)"
            raise ValueError(f"{told}, and its recording has {frames}: one of them is wrong, or cut short")

    def frames(self, samples: int) -> int:
        """Return how many frames so many samples become."""
        for kernel, stride in self.convolutions:
            samples = (samples - kernel) // stride + 1
        return max(samples, 0)


def repeats(text: Sequence[Any]) -> int:
    """Return how many entries are like the one before."""
    return sum(one == before for before, one in pairwise(text))


class Heard:
    """What a model hears of a recording, as the arrays of one row: `input_values` or `input_features`, perhaps a mask.

    Args:
        processor: an AudioProcessor; a recording at another rate is resampled to its own.
        augment: changes of a training recording.
    """

    fillers: ClassVar[dict[str, float]] = {"input_values": 0.0, "attention_mask": 0}
    """What fills up the rows of a batch, where recordings are of several lengths."""

    def __init__(self, processor: Any, augment: Sequence[SoundAugment] = ()) -> None:
        self.processor, self.augment = processor, list(augment)
        self.rate: int = processor.settings["sampling_rate"]

    def __call__(self, audio: Any, random: np.random.Generator | None = None) -> Arrays:
        made = self.processor(played(at_rate(audio, self.rate), self.augment, random), self.rate)
        return {name: tensor[0].numpy() for name, tensor in made.items()}
