"""Sets of recorded speech: WAV files, and rows that name them."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase

from mlplatform.data.sets.rows import write, write_split

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
    """Announcements of a telephone exchange, one speaker, 8 kHz: the clips whose words are known."""
    [folder] = source.rglob("en_US_f_Allison")
    (target / "clips").mkdir()
    rows = []
    for file, text in (*_announcements(folder), *_numbers(folder)):
        name = "clips/" + file.relative_to(folder).as_posix().replace("/", "-")
        shutil.copyfile(file, target / name)
        rows.append({"audio": name, "text": text})
    write_split(target, rows, "text")


def _announcements(folder: Path) -> Iterator[tuple[Path, str]]:
    with LABELS.open(encoding="utf-8") as opened:
        for row in csv.DictReader(opened, delimiter="\t", quoting=csv.QUOTE_NONE):
            known = row["matches_upstream_list"] == "1" and not row["file"].startswith("digits/")
            if known and (folder / row["file"]).is_file():
                yield folder / row["file"], row["whisper_tiny_en"].strip()


def _numbers(folder: Path) -> Iterator[tuple[Path, str]]:
    for number, word in WORDS.items():
        if (file := folder / "digits" / f"{number}.wav").is_file():
            yield file, word


def asterisk_words(source: Path, target: Path) -> None:
    """Words and numbers by the same speaker; what is said is in the files' names. Every third one is held out."""
    [folder] = source.rglob("en_US_f_Allison")
    (target / "clips").mkdir()
    rows = []
    for name, text in sorted(_words().items()):
        file = folder / f"{name}.wav"
        if file.is_file():
            place = f"clips/{name.replace('/', '-')}.wav"
            shutil.copyfile(file, target / place)
            rows.append({"audio": place, "text": text})
    for split in ("train", "validation"):
        held = split == "validation"
        write(target / f"{split}.jsonl", [row for number, row in enumerate(rows) if (number % 3 == 1) == held])


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
