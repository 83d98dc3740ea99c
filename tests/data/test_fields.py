"""What a value of a file becomes, and what is told of one that can't be used."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlplatform.data.fields import (
    Anything,
    Class,
    Classes,
    Field,
    ListOfWords,
    Number,
    Picture,
    Sound,
    Tags,
    Whole,
    Words,
)

HALF = "\ud83d"
GOOD: dict[str, tuple[Field, Any, Any]] = {
    "text": (Words(), " so ", " so "),
    "texts": (ListOfWords(), ["a", "b"], ["a", "b"]),
    "number": (Number(), 3, 3.0),
    "number in a text": (Number(), " -1.5e3 ", -1500.0),
    "whole": (Whole(), "7", 7),
    "whole of a float": (Whole(), 7.0, 7),
    "class": (Class(), " positive ", "positive"),
    "class of a number": (Class(), 3, "3"),
    "class of a float": (Class(), 3.0, "3"),
    "class of a boolean": (Class(), True, "1"),
    "classes": (Classes(), ["b", "a"], ["b", "a"]),
    "no classes": (Classes(), [], []),
    "tags": (Tags(), ["N", "V", "N"], ["N", "V", "N"]),
    "anything": (Anything(), {"a": [1]}, {"a": [1]}),
}
BAD: dict[str, tuple[Field, Any, str]] = {
    "number for a text": (Words(), 3, "is a number, and a text is needed"),
    "null for a text": (Words(), None, "is null, and a text is needed"),
    "blank": (Words(), " \n", "has no text in it"),
    "half a pair": (Words(), HALF, "half a surrogate pair"),
    "half a pair in a class": (Class(), HALF, "half a surrogate pair"),
    "text for texts": (ListOfWords(), "a b", "is a text, and a list of texts is needed (the step 'split'"),
    "no texts": (ListOfWords(), [], "is an empty list"),
    "blank among texts": (ListOfWords(), ["a", ""], "has no text in it"),
    "word for a number": (Number(), "many", "is 'many', and a number is needed"),
    "NaN": (Number(), float("nan"), "is nan, and a number is needed"),
    "infinity": (Number(), "inf", "is 'inf', and a number is needed"),
    "beyond floats": (Number(), 10**400, "and a number is needed"),
    "boolean for a number": (Number(), True, "is True, and a number is needed"),
    "list for a number": (Number(), [1], "is [1], and a number is needed"),
    "half": (Whole(), 0.5, "is 0.5, and a whole number of 0 or more is needed"),
    "negative": (Whole(), -1, "is -1, and a whole number of 0 or more is needed"),
    "no class": (Class(), "  ", "is empty, and the name of a class is needed"),
    "fraction for a class": (Class(), 0.5, "is a number, and the name of a class is needed"),
    "class twice": (Classes(), ["a", "a"], "names a class twice"),
    "text for classes": (Classes(), "a,b", "a list of classes is needed (the step 'split'"),
    "no tags": (Tags(), [], "is an empty list"),
    "missing image": (Picture(), "none.png", "names FOLDER/none.png, and there is no such file"),
    "name too long": (Picture(), "x" * 5000, "there is no such file"),
    "null for an image": (Picture(), None, "is null, and the path of an image file is needed"),
    "bytes that are no image": (Picture(), b"GIF89a and no more", "holds 18 bytes that are no image"),
    "list for sound": (Sound(), [0.1, 0.2], "is a list, and the path of an audio file is needed"),
}


@pytest.mark.parametrize(("field", "value", "wanted"), GOOD.values(), ids=GOOD.keys())
def test_a_value_becomes(tmp_path: Path, field: Field, value: Any, wanted: Any) -> None:
    made = field.clean(value, tmp_path)
    assert made == wanted
    assert type(made) is type(wanted)
    assert field.content(made) == field.content(wanted)


@pytest.mark.parametrize(("field", "value", "wanted"), BAD.values(), ids=BAD.keys())
def test_a_bad_value_is_told(tmp_path: Path, field: Field, value: Any, wanted: str) -> None:
    with pytest.raises(ValueError) as caught:
        field.clean(value, tmp_path)
    assert wanted.replace("FOLDER", str(tmp_path)) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.fixture
def png(tmp_path: Path) -> Path:
    """A picture of 6 x 4 pixels in three colours."""
    Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_an_image_is_a_path_its_bytes_or_an_array(tmp_path: Path, png: Path) -> None:
    field, inside = Picture(), png.read_bytes()
    for value in ("a.png", str(png), {"path": "a.png"}, {"bytes": None, "path": "a.png"}):
        assert field.clean(value, tmp_path) == png
    for value in (inside, {"bytes": inside, "path": "gone.png"}):
        assert np.asarray(field.clean(value, tmp_path)).tolist() == np.asarray(Image.open(png)).tolist()
    array = np.zeros((4, 6), np.uint8)
    assert field.clean(array, tmp_path) is array
    for value in ("a.png", inside, array):
        field.verify(field.clean(value, tmp_path))


@pytest.mark.parametrize("damage", ["cut", "chunk", "text"])
def test_a_damaged_image_is_found_by_its_pixels(tmp_path: Path, png: Path, damage: str) -> None:
    data = png.read_bytes()
    idat = data.index(b"IDAT")
    broken = {
        "cut": data[: idat + 20],
        "chunk": data[: idat - 4] + b"\0\0\0\1\xff\xff\xff\xff" + data[idat:],
        "text": b"no",
    }
    png.write_bytes(broken[damage])
    with pytest.raises(ValueError, match=r"a\.png: not a readable image"):
        Picture().verify(Picture().clean("a.png", tmp_path))
    with pytest.raises(ValueError, match=r"holds \d+ bytes that are no image"):
        Picture().clean(broken[damage], tmp_path)


def test_an_array_that_is_no_image_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the image holds float64; images are bytes"):
        Picture().verify(Picture().clean(np.zeros((4, 4)), tmp_path))


def wav(samples: np.ndarray, rate: int = 16000) -> bytes:
    """Return (n,) numbers from -1 to 1 as a WAV file of one channel."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return out.getvalue()


def test_sound_is_a_path_its_bytes_or_an_array_with_its_rate(tmp_path: Path) -> None:
    from mlplatform.data.sound import at_rate

    tone = np.sin(np.arange(8000) * 0.05).astype(np.float32) / 2
    (tmp_path / "a.wav").write_bytes(wav(tone))
    for value in ("a.wav", wav(tone), {"array": tone.tolist(), "sampling_rate": 16000}, {"array": tone}):
        cleaned = Sound().clean(value, tmp_path)
        Sound().verify(cleaned)
        np.testing.assert_allclose(at_rate(cleaned, 16000), tone, atol=1e-4)
    slow = Sound().clean({"array": tone, "sampling_rate": 8000}, tmp_path)
    assert len(slow) == 16000
    np.testing.assert_allclose(slow[200:-200:2], tone[100:-100], atol=1e-3)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"no sound", "not a readable recording"),
        (wav(np.zeros(0)), "has no samples"),
        (b"", "not a readable recording"),
    ],
    ids=["text", "no samples", "empty"],
)
def test_sound_that_is_none_is_told(tmp_path: Path, data: bytes, wanted: str) -> None:
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(ValueError, match=wanted):
        Sound().verify(Sound().clean("a.wav", tmp_path))


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_a_recording_cut_short_is_told(tmp_path: Path, ending: str) -> None:
    import soundfile

    path = tmp_path / f"a.{ending}"
    soundfile.write(path, np.sin(np.arange(16000) * 0.05) / 2, 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cut short|not a readable recording"):
        Sound().verify(Sound().clean(path.name, tmp_path))


def test_content_is_of_the_pixels_and_bytes_not_of_the_name(tmp_path: Path, png: Path) -> None:
    (tmp_path / "b.png").write_bytes(png.read_bytes())
    field = Picture()
    assert field.content(png) == field.content(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes(png.read_bytes() + b"x")
    assert field.content(png) != field.content(tmp_path / "b.png")
    assert Anything().content({"a": HALF, "at": np.datetime64("2020-01-01")}) != Anything().content({"a": HALF})
