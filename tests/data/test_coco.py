"""COCO's files: boxes, captions, and each way such a file is wrong."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mlplatform.data.fields import Class, Picture
from mlplatform.data.records import Reads, RecordSource
from mlplatform.errors import DataError
from mlplatform.registry import Spec
from mlplatform.tasks.contrastive import Captions
from mlplatform.tasks.detection import Objects, boxes_are_inside

BOXES = Reads({"image": Picture(), "objects": Objects()}, check=boxes_are_inside)
TEXTS = Reads({"image": Picture(), "text": Captions(), "label": Class()}, frozenset({"label"}))
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
Held = dict[str, Any]


def instances(count: int = 4) -> Held:
    """Images of 20 x 10 pixels, the n-th with n boxes; the last one's is also on a crowd."""
    images = [{"id": 100 + i, "file_name": f"{i}.png", "width": 20, "height": 10} for i in range(count)]
    boxes = [
        {"image_id": 100 + i, "category_id": 7 if n else 3, "bbox": [n, 1, 5.5, 6], "segmentation": [[1, 2]], "id": n}
        for i in range(count)
        for n in range(i)
    ]
    crowd = {"image_id": 100 + count - 1, "category_id": 7, "bbox": [0, 0, 20, 10], "iscrowd": 1}
    return {"images": images, "annotations": [*boxes, crowd], "categories": copy.deepcopy(CATEGORIES)}


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., RecordSource]:
    """Write a file and its images; return their source."""

    def make(held: Any, name: str = "instances.json", **options: Any) -> RecordSource:
        (tmp_path / "images").mkdir(exist_ok=True)
        for one in held.get("images", []) if isinstance(held, dict) else []:
            if isinstance(one, dict) and "file_name" in one:
                Image.new("RGB", (20, 10)).save(tmp_path / "images" / one["file_name"])
        (tmp_path / name).write_text(held if isinstance(held, str) else json.dumps(held))
        given = {"path": str(tmp_path / name), "images": str(tmp_path / "images"), "validation": 0.0}
        return Spec.of({"kind": "coco", **given, **options}, "data", "data").build()

    return make


Make = Callable[..., RecordSource]


def test_a_row_is_an_image_with_its_boxes(source: Make) -> None:
    opened = source(instances(), classes=None).open(BOXES)
    assert opened.classes == {"objects": ("cat", "dog")}  # by their ids
    rows = pickle.loads(pickle.dumps(opened.splits["train"]))
    assert [len(row["objects"]["bbox"]) for row in rows] == [0, 1, 2, 3]
    assert rows[2]["objects"] == {"bbox": [[0, 1, 5.5, 6], [1, 1, 5.5, 6]], "category": ["cat", "dog"]}
    assert [row["image"].name for row in rows] == ["0.png", "1.png", "2.png", "3.png"]
    assert rows[3].columns["file"] == "3.png"


def test_splits_have_files_and_folders_of_their_own(source: Make, tmp_path: Path) -> None:
    source(instances(3), "held_out.json")
    folders = {"train": str(tmp_path / "images"), "validation": str(tmp_path / "images")}
    opened = source(instances(), validation=str(tmp_path / "held_out.json"), images=folders).open(BOXES)
    assert {name: len(records) for name, records in opened.splits.items()} == {"train": 4, "validation": 3, "test": 0}
    other = instances(3)
    other["categories"] = [*CATEGORIES, {"id": 9, "name": "cats"}]
    source(other, "held_out.json")
    with pytest.raises(DataError, match=r"held_out\.json: its category 'cats' \(did you mean 'cat'\?\) is none of"):
        source(instances(), validation=str(tmp_path / "held_out.json")).open(BOXES)


def test_captions_come_together(source: Make) -> None:
    held = instances()
    said = [(101, "a dog"), (103, " two cats "), (101, "one dog")]
    held["annotations"] = [{"image_id": image, "caption": text} for image, text in said]
    del held["categories"]
    rows = source(held).open(TEXTS).splits["train"]
    assert [(row["image"].name, row["text"]) for row in rows] == [
        ("1.png", ["a dog", "one dog"]),
        ("3.png", ["two cats"]),
    ]
    assert rows[1].place.endswith("instances.json: image 4")


def change(path: str, value: Any) -> Callable[[Held], Held]:
    """Return what sets one value of a file, or takes it away when it is None."""

    def changed(held: Held) -> Held:
        *way, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
        place: Any = held
        for key in way:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
        return held

    return changed


BAD = {
    "unlisted image": (
        change("annotations.1.image_id", 5),
        r"image 5: annotation 2 is of image 5, which 'images' does",
    ),
    "unlisted category": (
        change("annotations.1.category_id", 4),
        r"image 3: 2\.png: annotation 2 is of category 4, and",
    ),
    "no box": (change("annotations.1.bbox", None), r"image 3: 2\.png: annotation 2 has no 'bbox'"),
    "outside": (
        change("annotations.1.bbox", [15, 1, 9, 5]),
        r"image 3: 'objects' has a box 1 .* outside the image of 20 x",
    ),
    "no area": (change("annotations.1.bbox", [1, 1, 0, 5]), r"image 3: 'objects' has a box 1 of 0 x 5 pixels"),
    "not four": (change("annotations.1.bbox", [1, 1, 5]), r"image 3: 'objects' has a box 1 that is \[1, 1, 5\]"),
    "no box at all": (change("annotations.1.bbox", 5), r"image 3: 'objects' has a box 1 that is 5"),
}
BROKEN = {
    "no annotations": (change("annotations", None), r"'annotations' is no list of objects"),
    "near miss": (change("images", None), r"'images' is no list of objects"),
    "twice": (change("images.1.id", 100), r"entry 2 of 'images' has id 100, as an earlier one"),
    "no name": (change("images.1.file_name", None), r"entry 2 of 'images' needs an id and a file_name; it has"),
    "no category name": (change("categories.0.name", None), r"entry 1 of 'categories' needs an id and a name"),
    "a list": (lambda held: [held], r"a list stands where COCO has an object"),
    "cut short": (lambda held: json.dumps(held)[:-9], r"not readable JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_named_or_counted(source: Make, name: str) -> None:
    made, says = BAD[name]
    with pytest.raises(DataError, match=rf"instances\.json: {says}"):
        source(made(instances())).open(BOXES)
    opened = source(made(instances()), on_bad_row="skip").open(BOXES)
    assert list(opened.skipped.values()) == [1]
    assert len(opened.splits["train"]) == (4 if name == "unlisted image" else 3)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line(source: Make, name: str) -> None:
    made, says = BROKEN[name]
    with pytest.raises(DataError, match=says) as caught:
        source(made(instances()), on_bad_row="skip").open(BOXES)
    assert re.match(r"\S+instances\.json: ", str(caught.value))
    assert "\n" not in str(caught.value)


def test_images_are_looked_at(source: Make, tmp_path: Path) -> None:
    made = source(instances())
    (tmp_path / "images" / "2.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2\.png: not a readable image"):
        made.open(BOXES)
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(DataError, match=r"image 3: 'image' names .*2\.png, and there is no such file"):
        made.open(BOXES)


def test_folders_are_those_of_splits(source: Make, tmp_path: Path) -> None:
    folder = str(tmp_path / "images")
    with pytest.raises(DataError, match=r"data\.images: 'val' is no split.*they are train, validation"):
        source(instances(), images={"train": folder, "val": folder})
    source(instances(), "other.json")
    with pytest.raises(DataError, match=r"data\.images names no folder for validation; it has train"):
        source(instances(), images={"train": folder}, validation=str(tmp_path / "other.json"))
    with pytest.raises(DataError, match=r"data\.images: there is no file or folder .*pictures"):
        source(instances(), images=str(tmp_path / "pictures"))
