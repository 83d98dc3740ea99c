"""Images in folders named after their classes: layouts, splits, and each way such a folder is wrong."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlplatform.data.fields import Class, Picture
from mlplatform.data.records import Reads, RecordSource
from mlplatform.errors import DataError
from mlplatform.registry import Spec

READS = Reads({"image": Picture(), "label": Class()})


def fill(folder: Path, classes: dict[str, int], suffix: str = ".png") -> None:
    """Write as many images of each class; a class's images have its number as their colour."""
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((6, 5, 3), 40 * number, np.uint8)
            pixels[0, 0] = i
            Image.fromarray(pixels).save(folder / name / f"{i:02}{suffix}")


def source(folder: Path, **options: Any) -> RecordSource:
    return Spec.of({"kind": "image_folder", "path": str(folder), **options}, "data", "data").build()


def told(folder: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        source(folder, **options).open(READS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_class_is_the_name_of_its_folder(tmp_path: Path) -> None:
    fill(tmp_path, {"cat": 30, "dog": 30}, ".webp")
    (tmp_path / "dog" / ".DS_Store").write_text("x")
    (tmp_path / "README.txt").write_text("x")
    opened = source(tmp_path, validation=0.3).open(READS)
    assert opened.classes == {"label": ("cat", "dog")}
    sizes = {name: len(records) for name, records in opened.splits.items()}
    assert sizes["train"] + sizes["validation"] == 60
    assert 8 <= sizes["validation"] <= 28
    assert sizes["test"] == 0
    for record in pickle.loads(pickle.dumps(opened.splits["train"])):
        assert Path(record["image"]).parent.name == record["label"]
        assert record.place == f"{tmp_path}: image {int(record.place.split()[-1])}"
        with Image.open(record["image"]) as image:
            assert int(np.asarray(image)[3, 3, 0]) == pytest.approx(40 * (record["label"] == "dog"), abs=12)


def test_splits_may_be_folders(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 3, "b": 4})
    fill(tmp_path / "validation", {"a": 2})
    opened = source(tmp_path, validation=0.5).open(READS)
    assert {name: len(records) for name, records in opened.splits.items()} == {"train": 7, "validation": 2, "test": 0}
    fill(tmp_path / "test", {"b": 1})
    assert len(source(tmp_path).open(READS).splits["test"]) == 1


def test_steps_see_the_class(tmp_path: Path) -> None:
    fill(tmp_path, {"cat": 2, "dog": 2})
    steps = [{"kind": "template", "column": "label", "text": "a {label}"}]
    assert source(tmp_path, validation=0.0, steps=steps).open(READS).classes == {"label": ("a cat", "a dog")}


def test_a_damaged_image_is_named_or_counted(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 4, "b": 4})
    (tmp_path / "b" / "01.png").write_bytes(b"no image")
    (tmp_path / "b" / "notes.txt").write_text("x")
    assert re.match(
        rf"{tmp_path}: image 6: {tmp_path}/b/01\.png: not a readable image.*on_bad_row=skip", told(tmp_path)
    )
    opened = source(tmp_path, validation=0.0, on_bad_row="skip").open(READS)
    assert (len(opened.splits["train"]), opened.skipped) == (7, {str(tmp_path): 2})
    (tmp_path / "b" / "01.png").unlink()
    assert re.search(r"image 8: b/notes\.txt is no image; they end in \.png", told(tmp_path))


def test_a_changed_folder_is_read_again(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 4, "b": 4})
    before = source(tmp_path, validation=0.0).fingerprint()
    assert source(tmp_path, validation=0.0).fingerprint() == before
    os.utime(tmp_path / "a" / "00.png", (1, 1))
    assert source(tmp_path, validation=0.0).fingerprint() != before


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda root: fill(root, {"a": 2, "b": 0}), r"/b: the class has no image; give it some"),
        (lambda root: None, r": no folder of a class in it; images lie in FOLDER/CLASS/"),
        (lambda root: fill(root / "train", {}) or (root / "train").mkdir(), r"/train: no folder of a class in it"),
        (lambda root: fill(root / "validation", {"a": 1}), r"has a folder validation and none called train"),
        (
            lambda root: (fill(root / "train", {"a": 1}), fill(root / "validaton", {"a": 1})),
            r"beside train stands the folder 'validaton', which is no split \(did you mean 'validation'\?\)",
        ),
        (
            lambda root: (fill(root, {"a": 1}), Image.new("L", (4, 4)).save(root / "loose.png")),
            r"loose\.png lies in no folder of a class \(1 such images\)",
        ),
        (
            lambda root: (fill(root / "train", {"a": 2}), fill(root / "test", {"b": 2})),
            r"no record to train on has 'b' as label, only one of the test split",
        ),
    ],
    ids=["empty class", "nothing", "empty train", "no train", "near miss", "loose", "untrained"],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, made: Any, says: str) -> None:
    made(tmp_path)
    assert re.search(says, told(tmp_path))


def test_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    assert re.search(r"data\.path: there is no file or folder .*/pet \(did you mean 'pets'\?\)", told(tmp_path / "pet"))
    (tmp_path / "file").write_text("x")
    assert re.search(r"data\.path: .*/file is a file; a folder is needed", told(tmp_path / "file"))
