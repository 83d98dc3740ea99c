"""Recorded digits of telephone exchanges, joined to strings: few recordings, and many ways they follow each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlplatform.data.sets.rows import write_split

DIGITS = {
    "en": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "es": ["cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"],
    "fr": ["zero", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"],
    "it": ["zero", "uno", "due", "tre", "quattro", "cinque", "sei", "sette", "otto", "nove"],
    "ru": ["nol", "odin", "dva", "tri", "chetyre", "pyat", "shest", "sem", "vosem", "devyat"],
}
"""In letters from a to z, for all alike; a voice's folder begins with its language."""
RATE, ROWS = 8000, 2600
COUNT, GAP, LEVEL = (2, 5), (0.0, 0.3), (0.2, 0.6)
"""What is drawn: the digits of a string, the seconds before and after each, how loud its loudest sample is."""
PACE, DECIBELS = 0.1, (10.0, 30.0)
QUIET = 0.02
"""Of the loudest sample: what is below it at the ends of a recording is left away."""


def recorded_digits(source: Path, target: Path) -> None:
    """Two to five digits of one voice in a row, in words; which digits decides the split, for all voices alike.

    A voice has one recording of each digit, so that both splits are made of the same ones; each digit of a string
    has its own pace, loudness and gap, each string its noise.
    """
    from mlplatform.data.sound import save
    from mlplatform.data.sound_augment import Noise, Pace

    known = voices(source)
    draw, pace, noise = np.random.default_rng(0), Pace(most=PACE), Noise(decibels=DECIBELS)
    (target / "clips").mkdir()
    rows = []
    for number in range(ROWS):
        voice = str(draw.choice(sorted(known)))
        said = draw.integers(10, size=draw.integers(*COUNT, endpoint=True)).tolist()
        parts = [_gap(draw)]
        for digit in said:
            parts += [pace(known[voice][digit], draw) * draw.uniform(*LEVEL), _gap(draw)]
        text = " ".join(DIGITS[voice[:2]][digit] for digit in said)
        name = f"clips/{number:04d}.wav"
        save(target / name, noise(np.concatenate(parts).astype(np.float32), draw), RATE)
        rows.append({"audio": name, "text": text, "digits": "".join(map(str, said)), "voice": voice})
    write_split(target, rows, "digits")


def _gap(draw: np.random.Generator) -> np.ndarray:
    return np.zeros(int(draw.uniform(*GAP) * RATE), np.float32)


def voices(source: Path) -> dict[str, list[np.ndarray]]:
    """Return each voice's ten recordings, by its folder's name, of the packages unpacked in `source`."""
    return {file.parents[1].name: _digits(file.parent) for file in sorted(source.rglob("digits/0.gsm"))}


def _digits(folder: Path) -> list[np.ndarray]:
    """Return a voice's ten recordings, from 1 to -1, without silence at their ends."""
    import soundfile

    found = []
    for digit in range(10):
        samples, _ = soundfile.read(
            folder / f"{digit}.gsm", dtype="float32", format="RAW", subtype="GSM610", samplerate=RATE, channels=1
        )
        loud = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max())
        found.append(samples[loud[0] : loud[-1] + 1] / np.abs(samples).max())
    return found
