"""Recorded digits of three languages, joined to sequences; the speakers of the held-out ones are never trained on."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlplatform.data.sets.rows import write

DIGITS = {
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve".split(),
    "fr": "zéro un deux trois quatre cinq six sept huit neuf".split(),
    "it": "zero uno due tre quattro cinque sei sette otto nove".split(),
}
SPEAKERS = {
    "train": {"es": "es_MX_f_Allison", "fr": "fr_CA_f_June", "it": "it_IT_m_Carlo"},
    "validation": {"es": "es", "fr": "fr", "it": "it_IT_f_Menardi"},
}
"""The folder of each speaker: one of a language is trained on, another held out."""
ROWS = {"train": 2400, "validation": 180}
RATE = 8000
QUIET = 0.02
"""Of the loudest sample: what is below it at the ends of a recording is left away."""

Samples = NDArray[np.float32]


def recorded_digits(source: Path, target: Path) -> None:
    """Three to six digits of one speaker in a row, with pauses between, at 8 kHz."""
    from mlplatform.data.sound import save

    (target / "clips").mkdir()
    for split, speakers in SPEAKERS.items():
        said = {language: _digits(source, folder) for language, folder in speakers.items()}
        rows, draw = [], random.Random(split)
        for number in range(ROWS[split]):
            language = draw.choice(sorted(said))
            digits = draw.choices(range(10), k=draw.randint(3, 6))
            name = f"clips/{split}-{number:04d}.wav"
            save(target / name, joined([said[language][digit] for digit in digits], draw), RATE)
            text = " ".join(DIGITS[language][digit] for digit in digits)
            rows.append({"audio": name, "text": text, "language": language, "speaker": speakers[language]})
        write(target / f"{split}.jsonl", rows)


def _digits(source: Path, folder: str) -> list[Samples]:
    """Return a speaker's ten recordings, without silence at their ends."""
    import soundfile

    [place] = source.rglob(f"sounds/{folder}/digits")
    found = []
    for digit in range(10):
        samples, _ = soundfile.read(
            place / f"{digit}.gsm", dtype="float32", format="RAW", subtype="GSM610", samplerate=RATE, channels=1
        )
        heard = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max())
        found.append(samples[heard[0] : heard[-1] + 1])
    return found


def joined(parts: list[Samples], draw: random.Random) -> Samples:
    """Return recordings one after the other, each as loud as the others, with pauses of up to 0.2 s around them."""
    pauses = [np.zeros(draw.randrange(RATE // 5), np.float32) for _ in range(len(parts) + 1)]
    level = [part * (0.5 / np.abs(part).max()) for part in parts]
    return np.concatenate([piece for pair in zip(pauses, [*level, pauses[-1][:0]], strict=True) for piece in pair])
