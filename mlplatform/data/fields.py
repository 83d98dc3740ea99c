"""What a field of a record may hold: how a value of a file becomes it, and what is wrong with one that can't.

A task says which fields it reads (see records.Reads). Every value of every row is cleaned and verified once, before
training; when a row is read again it is cleaned alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlplatform.errors import DataError, listing

Values = dict[str, Any]
"""A row: its columns, or what a task reads of it."""
SPLIT = "the step 'split' makes one of a text"


class Field:
    """One kind of field. All raise ValueError that says what is wrong with a value."""

    name = ""
    """Names the kind in the cache: another kind of field reads the rows again."""
    text = False
    """Whether a tokenizer is trained on it."""
    holds_classes = False
    """Whether `classes` finds some."""

    def clean(self, value: Any, folder: Path) -> Any:
        """Return what the task gets of a value. `folder` is where its file lies, which paths start from."""
        return value

    def verify(self, value: Any) -> None:
        """Read all that a cleaned value stands for: the pixels of an image's file."""

    def content(self, value: Any) -> bytes:
        """Return what decides which split a record of this value is in."""
        return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode(errors="surrogatepass")

    def classes(self, value: Any) -> list[str]:
        """Return the names of the classes a cleaned value holds."""
        return []

    def texts(self, value: Any) -> list[str]:
        """Return the texts of a cleaned value, where a tokenizer is trained on it."""
        return [value] if isinstance(value, str) else value or []


class Words(Field):
    """A text that is not blank."""

    name, text = "text", True

    def clean(self, value: Any, folder: Path) -> str:
        if not isinstance(value, str):
            raise ValueError(f"is {named(value)}, and a text is needed")
        if not value or value.isspace():
            raise ValueError("has no text in it")
        return whole_characters(value)


class ListOfWords(Field):
    """A list of texts, none of them empty: the tokens of a sentence, several captions of an image."""

    name, text = "texts", True

    def clean(self, value: Any, folder: Path) -> list[str]:
        if not isinstance(value, list) or not value:
            raise ValueError(f"is {named(value)}, and a list of texts is needed ({SPLIT})")
        return [Words().clean(one, folder) for one in value]


class Number(Field):
    """A number that is neither infinite nor NaN; a text that spells one is one."""

    name = "number"

    def clean(self, value: Any, folder: Path) -> float:
        try:
            number = float("nan" if isinstance(value, bool) else value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"is {shown(value)}, and a number is needed")
        return number


class Whole(Field):
    """A whole number, 0 or more; a text that spells one is one."""

    name = "whole"

    def clean(self, value: Any, folder: Path) -> int:
        number = Number().clean(value, folder)
        if number != int(number) or number < 0:
            raise ValueError(f"is {shown(value)}, and a whole number of 0 or more is needed")
        return int(number)


class Class(Field):
    """The name of one class: a text, or a whole number, which is its own name."""

    name, holds_classes = "class", True

    def clean(self, value: Any, folder: Path) -> str:
        if isinstance(value, bool | int):
            return str(int(value))
        if isinstance(value, float) and value.is_integer():
            return str(int(value))
        if not isinstance(value, str):
            raise ValueError(f"is {named(value)}, and the name of a class is needed")
        if not value.strip():
            raise ValueError("is empty, and the name of a class is needed")
        return whole_characters(value.strip())

    def classes(self, value: Any) -> list[str]:
        return [value]


class Classes(Field):
    """The names of the classes that apply, none of them or several."""

    name, holds_classes = "classes", True

    def clean(self, value: Any, folder: Path) -> list[str]:
        if not isinstance(value, list):
            raise ValueError(f"is {named(value)}, and a list of classes is needed ({SPLIT})")
        found = [Class().clean(one, folder) for one in value]
        if len(set(found)) < len(found):
            raise ValueError(f"names a class twice: {shown(value)}")
        return found

    def classes(self, value: Any) -> list[str]:
        return value


class Tags(Classes):
    """A list with the class of each of several things, such as the tokens of a sentence."""

    name = "tags"

    def clean(self, value: Any, folder: Path) -> list[str]:
        if not isinstance(value, list) or not value:
            raise ValueError(f"is {named(value)}, and a list of classes is needed ({SPLIT})")
        return [Class().clean(one, folder) for one in value]


class Turns(Field):
    """A conversation: a list of turns, each with a `role` and a `content`, at least one of them the assistant's."""

    name, text = "turns", True

    def clean(self, value: Any, folder: Path) -> list[dict[str, Any]]:
        if not isinstance(value, list) or not value:
            raise ValueError(f"is {named(value)}, and a list of turns is needed, each with a role and a content")
        for number, turn in enumerate(value, 1):
            if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
                raise ValueError(f"has a turn {number} that is no object with a 'role': {shown(turn)}")
            try:
                Words().clean(turn.get("content"), folder)
            except ValueError as error:
                raise ValueError(f"has a turn {number} whose 'content' {error}") from None
        roles = {turn["role"] for turn in value}
        if "assistant" not in roles:
            raise ValueError(f"has no turn of the assistant to learn from; its roles are {listing(sorted(roles))}")
        return [dict(turn) for turn in value]

    def texts(self, value: Any) -> list[str]:
        return [turn["content"] for turn in value]


class Anything(Field):
    """A value the task itself looks at."""

    name = "anything"


class BadFile(ValueError):
    """A file a row names is missing or can't be read: once it is mended, so is the row."""

    def __init__(self, told: str, path: Path) -> None:
        super().__init__(told)
        self.path = path


class Media(Field):
    """A file, named from where the table lies, or its bytes in the row."""

    what = "file"

    def clean(self, value: Any, folder: Path) -> Any:
        if isinstance(value, Mapping) and value.get("bytes") is not None:
            return value["bytes"]
        if isinstance(value, Mapping) and value.get("path"):
            value = value["path"]
        if isinstance(value, str) and value:
            path = folder / Path(value).expanduser()
            if not is_file(path):
                raise BadFile(f"names {path}, and there is no such file", path)
            return path
        if isinstance(value, bytes | Path | np.ndarray):
            return value
        raise ValueError(f"is {named(value)}, and the path of an {self.what} is needed")

    def content(self, value: Any) -> bytes:
        data = value.read_bytes() if isinstance(value, Path) else value
        if isinstance(data, np.ndarray):
            data = np.ascontiguousarray(data).tobytes()
        return hashlib.sha256(data).digest()

    def verify(self, value: Any) -> None:
        try:
            self.look(value)
        except (ValueError, DataError) as error:
            raise (BadFile(str(error), value) if isinstance(value, Path) else ValueError(str(error))) from None

    def look(self, value: Any) -> None:
        """Read all of a cleaned value. Raises ValueError or DataError when that can't be done."""
        raise NotImplementedError


class Picture(Media):
    """An image: the path of a file, its bytes, or an array (height, width[, channels]) of bytes.

    What a task gets is what `ImageProcessor` takes: a path, an image of Pillow or an array.
    """

    name, what = "image", "image file"

    def clean(self, value: Any, folder: Path) -> Any:
        value = super().clean(value, folder)
        return picture(value) if isinstance(value, bytes) else value

    def look(self, value: Any) -> None:
        from mlplatform.processors.image import pixels_of

        pixels_of(value, "the image", True)

    def content(self, value: Any) -> bytes:
        if isinstance(value, Path | np.ndarray):
            return super().content(value)
        return hashlib.sha256(value.tobytes()).digest()


class Sound(Media):
    """A recording: the path of a file, its bytes, or an array (samples,). `sound.read` gives its samples."""

    name, what = "audio", "audio file"

    def clean(self, value: Any, folder: Path) -> Any:
        from mlplatform.data.sound import RATE, resampled

        if isinstance(value, Mapping) and value.get("array") is not None:
            samples = np.asarray(value["array"], dtype=np.float32)
            return resampled(samples, int(value.get("sampling_rate") or RATE), RATE)
        return super().clean(value, folder)

    def look(self, value: Any) -> None:
        from mlplatform.data.sound import read

        read(value)


def picture(data: bytes) -> Any:
    """Return an image of Pillow. Raises ValueError when the bytes are none."""
    from PIL import Image

    from mlplatform.processors.image import UNREADABLE

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image
    except UNREADABLE as error:
        raise ValueError(f"holds {len(data)} bytes that are no image: {error}") from None


def whole_characters(text: str) -> str:
    """Return a text. Raises ValueError where it can't be written, which JSON's escapes can make of it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no text") from None
    return text


def is_file(path: Path) -> bool:
    """Whether there is such a file; a text too long for a name is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def named(value: Any) -> str:
    """Name a value's type as JSON does."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a text"}
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return names.get(type(value), "an object")


def shown(value: Any) -> str:
    """Return a value for a message, cut short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
