"""Recordings: cut short, of other rates and lengths, and transcripts that don't fit them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from mlplatform.data.fields import Words
from mlplatform.data.record_sources import CSVFiles, JSONRows
from mlplatform.data.recordings import Heard, Recording, Spelled, repeats
from mlplatform.data.records import Reads
from mlplatform.data.sound import at_rate, length, read, save
from mlplatform.errors import DataError
from mlplatform.processors.audio import AudioProcessor

RATE = 8000
TONE = (0.5 * np.sin(np.arange(RATE) * 0.3)).astype(np.float32)
FRONT = ((10, 5), (4, 4), (4, 4))
"""100 frames a second, nearly."""


def encoded(format: str, samples: Any = TONE, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format)
    return file.getvalue()


@pytest.mark.parametrize("format", ["WAV", "AIFF", "FLAC", "OGG"])
@pytest.mark.parametrize("kept", [0.002, 0.5, 0.999])
def test_a_recording_cut_short_is_told(tmp_path: Path, format: str, kept: float) -> None:
    data = encoded(format)
    path = tmp_path / "cut.sound"
    path.write_bytes(data[: int(len(data) * kept)])
    for value in (path, path.read_bytes()):
        with pytest.raises(ValueError, match=r"cut short|no samples"):
            read(value)
    path.write_bytes(data)
    assert len(read(path)[0]) == len(TONE)


def test_a_wav_file_that_states_no_size_is_whole(tmp_path: Path) -> None:
    data = encoded("WAV")
    place = data.index(b"data") + 4
    streamed = data[:place] + b"\xff\xff\xff\xff" + data[place + 4 :]
    assert len(read(streamed)[0]) == len(TONE)
    more = data + b"LIST\x04\x00\x00\x00note"
    assert len(read(more)[0]) == len(TONE)


@pytest.mark.parametrize(("own", "rate"), [(8000, 16000), (22050, 8000), (16000, 16000)])
def test_another_rate_is_resampled(tmp_path: Path, own: int, rate: int) -> None:
    moments = np.arange(int(own * 0.3)) / own
    path = tmp_path / "a.wav"
    save(path, (0.5 * np.sin(2 * np.pi * 440 * moments)).astype(np.float32), own)
    heard = at_rate(path, rate)
    assert len(heard) == length(path, rate) == length(path.read_bytes(), rate)
    spectrum = np.abs(np.fft.rfft(heard))
    assert spectrum.argmax() * rate / len(heard) == pytest.approx(440, abs=4)
    middle = heard[len(heard) // 4 : -len(heard) // 4]
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.03)


def rows_of(folder: Path, rows: list[dict[str, Any]]) -> Path:
    table = folder / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def clips(folder: Path) -> list[dict[str, Any]]:
    """Write twelve sound recordings of a second and return their rows."""
    rows = []
    for number in range(12):
        save(folder / f"{number}.wav", TONE * (1 - number / 20), RATE)
        rows.append({"audio": f"{number}.wav", "text": "ab ba"})
    return rows


READS = Reads({"audio": Recording(0.2, 2.0), "text": Words()}, check=Spelled(FRONT, RATE, frozenset("ab ")))


def spoiled(folder: Path, what: str) -> tuple[dict[str, Any], str]:
    """Return a row that can't be used, and what is said of it."""
    (folder / "whole.wav").write_bytes(encoded("WAV"))
    for name, format in (("cut.wav", "WAV"), ("cut.flac", "FLAC")):
        (folder / name).write_bytes(encoded(format)[:2000])
    save(folder / "short.wav", TONE[:800], RATE)
    save(folder / "long.wav", np.tile(TONE, 3), RATE)
    frames = 99
    return {
        "cut wav": ({"audio": "cut.wav", "text": "a"}, r"cut\.wav: the recording is cut short: \d+ of \d+ bytes"),
        "cut flac": ({"audio": "cut.flac", "text": "a"}, r"cut\.flac: not a readable recording, or one cut short"),
        "missing": ({"audio": "no.wav", "text": "a"}, r"names .*no\.wav, and there is no such file"),
        "text": ({"audio": "table.jsonl", "text": "a"}, r"table\.jsonl: not a readable recording"),
        "short": ({"audio": "short.wav", "text": "a"}, r"lasts 0\.10 s, and at least 0\.2 and at most 2 are wanted"),
        "long": ({"audio": "long.wav", "text": "a"}, r"lasts 3\.00 s"),
        "unknown": ({"audio": "whole.wav", "text": "aXb"}, r"'text' has 'X', which is no character of the vocabulary"),
        "separator": ({"audio": "whole.wav", "text": "a|b"}, r"'text' has '\|'"),
        "too much": (
            {"audio": "whole.wav", "text": "ab" * 45 + "bbbbbbbb"},
            rf"needs 106 frames \(98 characters, 8 like the one before\), and its recording has {frames}",
        ),
        "no text": ({"audio": "whole.wav", "text": " "}, r"'text' has no text in it"),
    }[what]


SPOILED = ["cut wav", "cut flac", "missing", "text", "short", "long", "unknown", "separator", "too much", "no text"]


@pytest.mark.parametrize("what", SPOILED)
def test_a_row_that_can_not_be_used_is_told_or_left_out(tmp_path: Path, what: str) -> None:
    rows = clips(tmp_path)
    bad, says = spoiled(tmp_path, what)
    table = rows_of(tmp_path, [*rows[:4], bad, *rows[4:]])
    with pytest.raises(DataError, match=rf"table\.jsonl: line 5: .*{says}.*data\.on_bad_row=skip"):
        JSONRows(path=str(table), validation=0.3).open(READS)
    opened = JSONRows(path=str(table), validation=0.3, on_bad_row="skip").open(READS)
    assert opened.skipped == {str(table): 1}
    assert sum(len(split) for split in opened.splits.values()) == 12


def test_a_transcript_that_just_fits(tmp_path: Path) -> None:
    check = Spelled(FRONT, RATE)
    path = tmp_path / "a.wav"
    save(path, TONE, RATE)
    check({"audio": path, "text": "ab" * 49 + "a"})
    with pytest.raises(ValueError, match="needs 100 frames"):
        check({"audio": path, "text": "ab" * 50})
    assert repeats("aabbba") == 3
    assert check.frames(3) == 0


def test_a_table_of_values_names_files_from_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "set" / "wavs").mkdir(parents=True)
    for number in range(8):
        save(tmp_path / "set" / "wavs" / f"{number}.wav", TONE * (1 - number / 20), RATE)
    lines = [f"wavs/{number}.wav\tab ba" for number in range(8)]
    (tmp_path / "set" / "clips.tsv").write_text("\n".join(["path\tsentence", *lines]) + "\n")
    names: dict[str, str] = {"audio": "path", "text": "sentence"}
    opened = CSVFiles(path=str(tmp_path / "set"), validation=0.3, fields=names).open(READS)
    record = opened.splits["train"][0]
    assert record["audio"].parent == tmp_path / "set" / "wavs"
    assert record["text"] == "ab ba"


def test_what_decides_about_rows_is_in_the_cache_key() -> None:
    keys = {
        Reads({"audio": Recording(*limits)}, check=Spelled(front, RATE, letters)).key
        for limits in ((0.0, None), (0.1, None), (0.0, 3.0))
        for front in (FRONT, FRONT[:2])
        for letters in (None, frozenset("ab"), frozenset("abc"))
    }
    assert len(keys) == 18


def test_what_a_model_hears(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    save(path, TONE, RATE)
    wave = Heard(AudioProcessor({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "return_attention_mask": True}))
    made = wave(path)
    assert {name: array.shape for name, array in made.items()} == {"input_values": (16000,), "attention_mask": (16000,)}
    assert made["input_values"].mean() == pytest.approx(0, abs=1e-4)
    mel = Heard(AudioProcessor({"feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": 2}))
    assert {name: array.shape for name, array in mel(path).items()} == {"input_features": (80, 200)}
