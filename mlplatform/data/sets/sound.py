"""Sets of recorded speech: WAV files, and rows that name them."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from string import ascii_lowercase

from mlplatform.data.sets.rows import Row, split, write

LABELS = Path(__file__).with_name("asterisk_labels.tsv")
"""What Whisper tiny.en heard in each clip, made by this project; the last column: the clip's published text agrees."""
SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
WORDS = dict(enumerate(f"{SMALL} seventeen eighteen nineteen".split()))
TENS = ["twen", "thir", "for", "fif", "six", "seven", "eigh", "nine"]
WORDS |= {10 * tens: f"{stem}ty" for tens, stem in enumerate(TENS, 2)}
FIFTHS = {"five": "fifth", "eight": "eighth", "nine": "ninth", "twelve": "twelfth"}
ALIKE = "hundred thousand million billion minus dollars today tomorrow yesterday pound star at oh"
DAYS = "sunday monday tuesday wednesday thursday friday saturday"
MONTHS = "january february march april may june july august september october november december"
PHONETIC = """alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec
romeo sierra tango uniform victor whiskey xray yankee zulu"""


def asterisk_speech(source: Path, target: Path) -> None:
    """Announcements of a telephone exchange, one speaker, 8 kHz, some held out; single words are all to train on."""
    [folder] = source.rglob("en_US_f_Allison")
    (target / "clips").mkdir()
    said, words = _said(folder), _words()
    sentences = _rows(folder, target, {name: said[name] for name in said if name not in words})
    train, held = split(sentences, "text")
    write(target / "train.jsonl", [*train, *_rows(folder, target, words)])
    write(target / "validation.jsonl", held)


def _said(folder: Path) -> dict[str, str]:
    """Return what is said in the clips whose words are known, numbers as words: name -> text."""
    with LABELS.open(encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened, delimiter="\t", quoting=csv.QUOTE_NONE))
    known = [row for row in rows if row["matches_upstream_list"] == "1"]
    return {row["file"].removesuffix(".wav"): spoken(row["whisper_tiny_en"].strip()) for row in known}


def spoken(text: str) -> str:
    """Return a text with its numbers as words: those to twenty, of others each digit."""

    def words(found: re.Match[str]) -> str:
        return WORDS.get(int(found[0])) or " ".join(WORDS[int(digit)] for digit in found[0])

    return re.sub(r"\d+", words, text)


def _rows(folder: Path, target: Path, said: Mapping[str, str]) -> list[Row]:
    """Copy the clips that are there; return their rows."""
    rows = []
    for name, text in sorted(said.items()):
        if (file := folder / f"{name}.wav").is_file():
            place = f"clips/{name.replace('/', '-')}.wav"
            shutil.copyfile(file, target / place)
            rows.append({"audio": place, "text": text})
    return rows


def asterisk_words(source: Path, target: Path) -> None:
    """Words and numbers by the same speaker; what is said is in the files' names. Every third one is held out."""
    [folder] = source.rglob("en_US_f_Allison")
    (target / "clips").mkdir()
    rows = _rows(folder, target, _words())
    for part in ("train", "validation"):
        held = part == "validation"
        write(target / f"{part}.jsonl", [row for number, row in enumerate(rows) if (number % 3 == 1) == held])


def _words() -> dict[str, str]:
    """Return what is said in the clips whose names tell it: name -> words."""
    said = {f"digits/{number}": word for number, word in WORDS.items()}
    said |= {f"digits/h-{number}": ordinal(word) for number, word in WORDS.items() if number}
    alike = ALIKE.split()
    said |= {f"digits/{word}": word for word in alike} | {f"digits/h-{word}": f"{word}th" for word in alike[:4]}
    for kind, names in (("day", DAYS), ("mon", MONTHS)):
        said |= {f"digits/{kind}-{number}": name for number, name in enumerate(names.split())}
    said |= {f"letters/{letter}": letter for letter in ascii_lowercase}
    return said | {f"phonetic/{word[0]}_p": word for word in PHONETIC.split()}


def ordinal(word: str) -> str:
    """Return the ordinal of a number up to twenty, or of a multiple of ten: `five` -> `fifth`."""
    if word.endswith("y"):
        return f"{word[:-1]}ieth"
    return {"one": "first", "two": "second", "three": "third", **FIFTHS}.get(word, f"{word}th")
