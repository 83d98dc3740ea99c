"""Images in folders named after their classes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from mlplatform.data.files import find_folder
from mlplatform.data.records import SPLITS, RecordSource
from mlplatform.data.tables import Place, Table, stamp
from mlplatform.errors import DataError, did_you_mean, listing
from mlplatform.registry import Fraction, Spec, Text, block

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
LAYOUT = "images lie in FOLDER/CLASS/, or in FOLDER/train/CLASS/ and FOLDER/validation/CLASS/"


@block("data/image_folder")
class ImageFolder(RecordSource):
    """A folder with a folder of images for each class: rows of `image` and `label`, the name of its folder.

    Where there is a folder `train`, the splits are folders: beside it may stand `validation` and `test`. Names that
    begin with a dot are passed over; anything else that is no image is a bad row.

    Args:
        path: the folder.
        validation, test: the share of images held out by a hash of their content, where the split has no folder.
        steps: changes of rows, in order: `{kind: template, column: text, text: "a photo of a {label}"}`.
        classes: the names of the classes, in the order of their numbers; null takes those of the train split, sorted.
        on_bad_row: what an image that can't be read does: stop with its name, or be left out and counted.
    """

    def __init__(
        self,
        *,
        path: Text,
        validation: Fraction = 0.1,
        test: Fraction = 0.0,
        steps: list[Annotated[Spec, "step"]] = [],  # noqa: B006  (read as data, never changed)
        classes: list[Text] | None = None,
        on_bad_row: Literal["error", "skip"] = "error",
    ) -> None:
        root = find_folder(path, "data.path")
        self.name = str(root)
        self.folders = split_folders(root)
        super().__init__(
            validation=0.0 if "validation" in self.folders else validation,
            test=0.0 if "test" in self.folders else test,
            fields={},
            steps=steps,
            classes=classes,
            skip=on_bad_row == "skip",
            options={},
        )

    def tables(self) -> dict[str, list[Table]]:
        return {split: [_Images(folder)] for split, folder in self.folders.items()}

    def content(self) -> str:
        """Return a hash of every file's name, size and time of change: the bytes are not read for it."""
        digest = hashlib.sha256()
        for split, folder in self.folders.items():
            for name in _Images(folder).files:
                digest.update(f"{split} {name} {stamp(folder / name)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split. Raises DataError where splits and classes stand side by side."""
    inside = _folders(root)
    splits = [name for name in SPLITS if name in inside]
    if not splits:
        return {"train": root}
    if "train" not in splits:
        raise DataError(f"{root}: it has a folder {splits[0]} and none called train; {LAYOUT}")
    if others := [name for name in inside if name not in SPLITS]:
        near = did_you_mean(others[0], SPLITS)
        raise DataError(f"{root}: beside train stands the folder '{others[0]}', which is no split{near}; {LAYOUT}")
    return {name: root / name for name in splits}


class _Images:
    """The images of one split's folder, in the order of their names."""

    counted = "image"

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, str(folder)
        classes = _folders(folder)
        if not classes:
            raise DataError(f"{folder}: no folder of a class in it; {LAYOUT}")
        if loose := sorted(file.name for file in folder.iterdir() if file.suffix.lower() in SUFFIXES):
            raise DataError(f"{folder}: {loose[0]} lies in no folder of a class ({len(loose)} such images); {LAYOUT}")
        self.files: list[str] = []
        for label in classes:
            files = sorted(f for f in (folder / label).rglob("*") if f.is_file() and not _hidden(f, folder))
            if not files:
                raise DataError(f"{folder / label}: the class has no image; give it some, or take the folder away")
            self.files += [str(file.relative_to(folder)) for file in files]

    def scan(self) -> Iterator[tuple[Place, dict[str, Any] | ValueError]]:
        for number, name in enumerate(self.files):
            if Path(name).suffix.lower() in SUFFIXES:
                yield Place(number, number + 1), self.read(number)
            else:
                yield Place(number, number + 1), ValueError(f"{name} is no image; they end in {listing(SUFFIXES)}")

    def read(self, key: int) -> dict[str, Any]:
        name = self.files[key]
        return {"image": name, "label": Path(name).parts[0]}


def _folders(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)
