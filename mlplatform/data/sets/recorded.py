"""Recorded announcements of a telephone exchange in five languages, and which language it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlplatform.data.sets.rows import split, write

FOLDERS = {
    "english": "en_US_f_Allison",
    "french": "fr_CA_f_June",
    "italian": "it_IT_m_Carlo",
    "russian": "ru_RU_f_IvrvoiceRU",
    "spanish": "es_MX_f_Allison",
}
"""Where each language lies; one woman speaks both English and Spanish, so that a voice does not tell these two."""
RATE, LONGEST, LEAST = 8000, 2.0, 0.3
"""Samples a second; seconds that are kept of a recording, and those it has at least."""
QUIET = 0.02
"""Of the loudest sample: what is below it at the ends of a recording is left away."""
NO_SPEECH = ("silence/", "beep", "ascending", "descending", "tt-monkeys.")


def spoken_languages(source: Path, target: Path) -> None:
    """The first two seconds of each announcement; what is announced decides the split, for all languages alike."""
    import soundfile

    from mlplatform.data.sound import save

    (target / "clips").mkdir()
    rows = []
    for language, name in FOLDERS.items():
        [folder] = source.rglob(name)
        for file in sorted(folder.rglob("*.gsm")):
            said = file.relative_to(folder).as_posix()
            if said.startswith(NO_SPEECH):
                continue
            samples, _ = soundfile.read(
                file, dtype="float32", format="RAW", subtype="GSM610", samplerate=RATE, channels=1
            )
            loud = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max(initial=0.0))
            part = samples[loud[0] : loud[-1] + 1][: int(LONGEST * RATE)] if len(loud) else samples[:0]
            if len(part) >= LEAST * RATE:
                place = f"clips/{language}-{said.removesuffix('.gsm').replace('/', '-')}.wav"
                save(target / place, part * (0.5 / np.abs(part).max()), RATE)
                rows.append({"audio": place, "label": language, "said": said})
    train, held = split(rows, "said")
    write(target / "train.jsonl", train)
    write(target / "validation.jsonl", held)
