"""Sets of synthetic speech, said by eSpeak NG: formants, no recordings."""

from __future__ import annotations

import ctypes
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlplatform.data.sets.rows import write
from mlplatform.errors import DataError

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ACCENTS = ["en", "en-US", "en-GB-scotland", "en-GB-x-rp", "en-GB-x-gbclan", "en-GB-x-gbcwmd", "en-029"]
VOICES = {"train": ["m1", "m2", "m4", "m5", "m6", "m8", "f1", "f2", "f4", "f5"], "validation": ["m3", "m7", "f3"]}
"""Variants of eSpeak NG's voices: those of the held-out rows are never heard in training."""
ROWS = {"train": 1600, "validation": 160}
RATE = 8000
HEARD = 22050
"""Samples a second the library gives."""


def spoken_digits(source: Path, target: Path) -> None:
    """Three to six digits in a row, by voices of several accents, paces and pitches, at 8 kHz."""
    from mlplatform.data.sound import resampled, save

    speaker = Speaker(next(source.rglob("libespeak-ng.so")), next(source.rglob("espeak-ng-data")))
    (target / "clips").mkdir()
    for split, voices in VOICES.items():
        rows, draw = [], random.Random(split)
        for number in range(ROWS[split]):
            text = " ".join(draw.choices(DIGITS, k=draw.randint(3, 6)))
            voice = f"gmw/{draw.choice(ACCENTS)}+{draw.choice(voices)}"
            samples = speaker.say(text, voice, draw.randint(130, 230), draw.randint(25, 75))
            name = f"clips/{split}-{number:04d}.wav"
            save(target / name, resampled(samples, HEARD, RATE), RATE)
            rows.append({"audio": name, "text": text, "voice": voice})
        write(target / f"{split}.jsonl", rows)


class Speaker:
    """eSpeak NG's library, of the version whose hash the catalogue names; it is called and not installed.

    Raises:
        DataError: the library does not run on this machine.
    """

    def __init__(self, library: Path, data: Path) -> None:
        try:
            self.library = ctypes.CDLL(str(library))
        except OSError as error:
            raise DataError(f"{library.name}: doesn't run on this machine: {error}") from None
        if self.library.espeak_Initialize(2, 0, str(data.parent).encode(), 0) != HEARD:  # 2: no sound card, wait
            raise DataError(f"{library.name}: it finds no data in {data}")
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._take)  # kept, since the library calls it later
        self.library.espeak_SetSynthCallback(self._callback)
        self._heard: list[bytes] = []

    def _take(self, samples: ctypes.Array[ctypes.c_short], count: int, _: int) -> int:
        if samples and count:
            self._heard.append(ctypes.string_at(samples, 2 * count))
        return 0

    def say(self, text: str, voice: str, pace: int, pitch: int) -> NDArray[np.float32]:
        """Return samples from -1 to 1. Raises DataError for a voice there is not.

        Args:
            pace: words a minute. pitch: 0 to 100.
        """
        if self.library.espeak_SetVoiceByName(voice.encode()):
            raise DataError(f"eSpeak NG has no voice '{voice}'")
        for parameter, value in ((1, pace), (3, pitch)):
            self.library.espeak_SetParameter(parameter, value, 0)
        data, self._heard = text.encode() + b"\0", []
        self.library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, 1, None, None)  # 1: UTF-8
        return (np.frombuffer(b"".join(self._heard), np.int16) / 32768).astype(np.float32)
