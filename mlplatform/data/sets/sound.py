"""Sets of recorded speech: WAV files, and rows that name them."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

from mlplatform.data.sets.rows import write_split

LABELS = Path(__file__).with_name("asterisk_labels.tsv")
"""What Whisper tiny.en heard in each clip, made by this project; the last column: the clip's published text agrees."""
SMALL = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
WORDS = dict(enumerate(f"{SMALL} seventeen eighteen nineteen".split()))
TENS = ["twen", "thir", "for", "fif", "six", "seven", "eigh", "nine"]
WORDS |= {10 * tens: f"{stem}ty" for tens, stem in enumerate(TENS, 2)}


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
