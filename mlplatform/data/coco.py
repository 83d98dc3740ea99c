"""COCO's files: images with boxes, or with captions. https://cocodataset.org/#format-data"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from mlplatform.data.fields import shown
from mlplatform.data.files import check_apart, find, find_folder, fingerprint
from mlplatform.data.records import SPLITS, RecordSource
from mlplatform.data.tables import CHANGED, Place, Table, stamp
from mlplatform.errors import DataError, did_you_mean, listing
from mlplatform.registry import Fraction, Spec, Text, block

UNREAD = ("segmentation", "info", "licenses")
"""Keys whose values are dropped as a file is read: nothing here uses them, and polygons are most of it."""


@block("data/coco")
class Coco(RecordSource):
    """A JSON file of COCO's and a folder of images: one row an image, in the file's order.

    Instances give `image` and `objects` {bbox, category}; boxes of crowds (`iscrowd`) are left out, and an image may
    have none. Captions give `image` and `text`, all its captions; an image without one is left out. `file` is its name.

    Args:
        path: the JSON file.
        images: the folder its file names start from; or the folder of each split.
        validation, test: the share of images held out by a hash of their content, or the path of a JSON file.
        fields: field of the task -> column, where they differ.
        steps: changes of rows, in order.
        classes: the names of the classes, in the order of their numbers; null takes the file's, by their ids.
        on_bad_row: what an image that can't be read or is annotated wrongly does: stop, or be left out and counted.
    """

    def __init__(
        self,
        *,
        path: Text,
        images: Text | dict[str, Text],
        validation: Fraction | Text = 0.1,
        test: Fraction | Text = 0.0,
        fields: dict[str, Text] = {},  # noqa: B006  (read as data, never changed)
        steps: list[Annotated[Spec, "step"]] = [],  # noqa: B006
        classes: list[Text] | None = None,
        on_bad_row: Literal["error", "skip"] = "error",
    ) -> None:
        given: dict[str, Any] = {"train": path, "validation": validation, "test": test}
        self.files = {split: _one_file(split, told) for split, told in given.items() if isinstance(told, str)}
        check_apart({split: [file] for split, file in self.files.items()})
        self.folders = {split: _images_of(split, images) for split in self.files}
        self.name = self.files["train"].name
        super().__init__(
            validation=0.0 if isinstance(validation, str) else float(validation),
            test=0.0 if isinstance(test, str) else float(test),
            fields=fields,
            steps=steps,
            classes=classes,
            skip=on_bad_row == "skip",
            options={},
        )

    @cached_property
    def parts(self) -> dict[str, CocoTable]:
        """The table of each split that has a file."""
        return {split: CocoTable(file, self.folders[split]) for split, file in self.files.items()}

    def tables(self) -> dict[str, list[Table]]:
        return {split: [table] for split, table in self.parts.items()}

    def content(self) -> str:
        parts = [f"{split} {fingerprint(file)}" for split, file in self.files.items()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def known_classes(self) -> dict[str, tuple[str, ...]]:
        names = self.parts["train"].categories
        for table in self.parts.values():
            if strange := [name for name in table.categories if name not in names]:
                told = f"{table.name}: its category '{strange[0]}'{did_you_mean(strange[0], names)} is none of"
                raise DataError(f"{told} {self.name}, which has {listing(names)}")
        return {"objects": names} if names else {}


def _one_file(split: str, path: str) -> Path:
    key = "data.path" if split == "train" else f"data.{split}"
    files = find(path, (".json",), key)
    if len(files) > 1:
        raise DataError(f"{key}: {path} names {len(files)} files ({listing([f.name for f in files])}); name one")
    return files[0]


def _images_of(split: str, images: str | Mapping[str, str]) -> Path:
    if isinstance(images, str):
        return find_folder(images, "data.images")
    if strange := [name for name in images if name not in SPLITS]:
        near = did_you_mean(strange[0], SPLITS)
        raise DataError(f"data.images: '{strange[0]}' is no split{near}; they are {listing(SPLITS)}")
    if split not in images:
        raise DataError(f"data.images names no folder for {split}; it has {listing(images)}")
    return find_folder(images[split], f"data.images.{split}")


class CocoTable:
    """The images of one file with what is said of each. A process reads the file once, when it first asks for a row."""

    counted = "image"

    def __init__(self, file: Path, folder: Path) -> None:
        self.file, self.folder, self.name, self.stamp = file, folder, str(file), stamp(file)

    def scan(self) -> Iterator[tuple[Place, dict[str, Any] | ValueError]]:
        for number, row in enumerate(self.rows):
            if row is not None:
                yield Place(number, number + 1), row

    def read(self, key: int) -> dict[str, Any]:
        if stamp(self.file) != self.stamp:
            raise ValueError(CHANGED)
        row = self.rows[key]
        if not isinstance(row, dict):
            raise row or ValueError(CHANGED)
        return row

    def __getstate__(self) -> dict[str, Any]:
        kept = ("file", "folder", "name", "stamp")
        return {name: self.__dict__[name] for name in kept}  # a worker reads the file itself

    @property
    def categories(self) -> tuple[str, ...]:
        """The names of the categories in the order of their ids; none where the file has captions."""
        return tuple(self._names[number] for number in sorted(self._names))

    @cached_property
    def rows(self) -> list[dict[str, Any] | ValueError | None]:
        """A row for each image, what is wrong with it, or None where nothing is said of it; after them a problem for
        each annotation of no image."""
        return self._read()[1]

    @cached_property
    def _names(self) -> dict[int, str]:
        return self._read()[0]

    def _read(self) -> tuple[dict[int, str], list[dict[str, Any] | ValueError | None]]:
        held = _object(self.file)
        annotations, images = (_listed(self.file, held, key) for key in ("annotations", "images"))
        captioned = any("caption" in one for one in annotations)
        names = {} if captioned else _numbered(self.file, _listed(self.file, held, "categories"), "categories", "name")
        files = _numbered(self.file, images, "images", "file_name")
        said: dict[int, list[Any]] = {number: [] for number in files}
        stray: list[ValueError] = []
        wrong: dict[int, ValueError] = {}
        for place, one in enumerate(annotations, 1):
            image = one.get("image_id")
            if image not in said:
                stray.append(ValueError(f"annotation {place} is of image {shown(image)}, which 'images' does not list"))
                continue
            try:
                said[image].append(_caption(one) if captioned else _box(one, names))
            except ValueError as error:
                wrong.setdefault(image, ValueError(f"{files[image]}: annotation {place} {error}"))
        make = _captions if captioned else _objects
        rows: list[Any] = [wrong.get(number) or make(file, said[number]) for number, file in files.items()]
        self.__dict__.update(rows=rows + stray, _names=names)
        return self._names, self.rows


def _object(file: Path) -> dict[str, Any]:
    def small(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pairs if key not in UNREAD}

    try:
        held = json.loads(file.read_bytes(), object_pairs_hook=small)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not readable JSON: {error}") from None
    if not isinstance(held, dict):
        raise DataError(f"{file}: a list stands where COCO has an object with 'images' and 'annotations'")
    return held


def _listed(file: Path, held: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = held.get(key)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        near = did_you_mean(key, held)
        raise DataError(
            f"{file}: '{key}' is no list of objects{near}; COCO's files have images, annotations, categories"
        )
    return value


def _numbered(file: Path, entries: list[dict[str, Any]], key: str, name: str) -> dict[int, str]:
    """Return id -> name of entries. Raises DataError for an entry without, or an id that stands there twice."""
    found: dict[int, str] = {}
    for place, one in enumerate(entries, 1):
        number, told = one.get("id"), one.get(name)
        if not isinstance(number, int) or not isinstance(told, str) or not told:
            raise DataError(f"{file}: entry {place} of '{key}' needs an id and a {name}; it has {shown(one)}")
        if number in found:
            raise DataError(f"{file}: entry {place} of '{key}' has id {number}, as an earlier one")
        found[number] = told
    return found


def _box(one: Mapping[str, Any], names: Mapping[int, str]) -> tuple[Any, str] | None:
    """Return an object's box and category, None for a crowd. The task looks whether the box lies within the image."""
    category: Any = one.get("category_id")
    if category not in names:
        raise ValueError(f"is of category {shown(category)}, and 'categories' lists {listing(names)}")
    if "bbox" not in one:
        raise ValueError("has no 'bbox'")
    return None if one.get("iscrowd") else (one["bbox"], names[category])


def _caption(one: Mapping[str, Any]) -> str:
    if not isinstance(one.get("caption"), str) or not one["caption"].strip():
        raise ValueError("has no 'caption' with text in it")
    return one["caption"].strip()


def _objects(file: str, said: list[Any]) -> dict[str, Any]:
    there = [one for one in said if one is not None]
    return {"image": file, "file": file, "objects": {"bbox": [b for b, _ in there], "category": [c for _, c in there]}}


def _captions(file: str, said: list[Any]) -> dict[str, Any] | None:
    return {"image": file, "file": file, "text": said} if said else None
