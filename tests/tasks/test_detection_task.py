"""Objects on images: boxes through resizing, padding and mirroring, COCO's scores, made scenes, what can't be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from records import Run

from mlplatform.cli.compose import compose_model
from mlplatform.context import Output
from mlplatform.data.scenes import DigitScenes
from mlplatform.errors import DataError, SpecError
from mlplatform.models import build
from mlplatform.processors.image import ImageProcessor
from mlplatform.registry import Spec
from mlplatform.tasks.detection import Detection

SMALL = [
    "backbone.trunk.stem=8",
    "backbone.trunk.widths=[8,8,8]",
    *(
        f"{tower}.{size}"
        for tower in ("encoder", "decoder")
        for size in ("dim=16", "depth=1", "layer.attention.heads=2")
    ),
    "decoder.layer.cross.heads=2",
    "encoder.layer.mlp.width=16",
    "decoder.layer.mlp.width=16",
    "heads.detection.labels=2",
]
FIXED = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 64}}
FREE = {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 32, "longest_edge": 96}}


def rows(folder: Path) -> list[dict[str, Any]]:
    """Write pictures of several sizes; return their rows."""
    made = []
    for number, (width, height) in enumerate([(40, 20), (30, 60), (32, 32), (50, 40)]):
        Image.fromarray(np.full((height, width, 3), 40 * number, np.uint8)).save(folder / f"{number}.png")
        boxes = [[2, 4, 10, 12], [width - 8, height - 6, 8, 6]][: 1 + number % 2]
        objects = {"bbox": boxes, "category": ["cat", "dog"][: len(boxes)]}
        made.append({"image": f"{number}.png", "objects": objects})
    made[2]["objects"] = {"bbox": [], "category": []}
    return made


def run(folder: Path, given: Any = None, processor: Any = FREE, **task: Any) -> Run:
    model = compose_model("detr_tiny", SMALL).check().config
    tools = {"processor": ImageProcessor(processor)}
    return Run(folder, {"kind": "detection", **task}, model, given or rows(folder), tools=tools)


def oracle(made: Run, batch: dict[str, torch.Tensor], score: float = 9.0) -> Output:
    """Return logits and boxes that say exactly what is there."""
    count = batch["classes"].shape[1]
    logits = torch.zeros(len(batch["classes"]), count + 2, 3)
    logits[..., 2] = 5.0
    boxes = torch.full((len(logits), count + 2, 4), 0.5)
    for row, classes in enumerate(batch["classes"]):
        for slot, label in enumerate(classes.tolist()):
            if label >= 0:
                logits[row, slot] = torch.tensor([-9.0, -9.0, -9.0])
                logits[row, slot, label] = score
                boxes[row, slot] = batch["boxes"][row, slot]
    zero = torch.zeros(())
    return Output(logits=logits, pred_boxes=boxes, loss_sum=zero, loss_count=zero + 1)


@pytest.mark.parametrize("processor", [FREE, FIXED], ids=["sizes of their own", "one size"])
def test_boxes_come_back_in_the_pixels_of_the_image(tmp_path: Path, processor: Any) -> None:
    made = run(tmp_path, processor=processor)
    batch = made.batch()
    said = made.task.predictions(batch, oracle(made, batch))
    for number, one in zip(batch["numbers"].tolist(), said, strict=True):
        true = made.task.held_out[number]["objects"]
        assert [found["category"] for found in one["objects"]] == true["category"]
        for found, box in zip(one["objects"], true["bbox"], strict=True):
            assert found["bbox"] == pytest.approx(box, abs=1e-3)
            assert found["score"] > 0.99


def test_what_fills_a_batch_up_is_masked(tmp_path: Path) -> None:
    batch = run(tmp_path).batch()
    assert batch["pixel_mask"].shape == (4, *batch["pixel_values"].shape[-2:])
    seen = batch["pixel_mask"].flatten(1).sum(1)
    assert seen.tolist() == batch["sizes"][:, :2].prod(1).tolist()
    assert len(set(seen.tolist())) > 1
    hidden = batch["pixel_values"][batch["pixel_mask"][:, None].expand_as(batch["pixel_values"]) == 0]
    assert not hidden.any()


def test_an_oracle_is_precise_and_half_of_one_is_not(tmp_path: Path) -> None:
    made = run(tmp_path)
    made.task.scored = lambda batch: oracle(made, batch)
    found = made.measured()
    assert found["validation/map"] == pytest.approx(1.0)
    assert found["validation/map_50"] == found["validation/mar_100"] == pytest.approx(1.0)

    def moved(batch: dict[str, torch.Tensor]) -> Output:
        out = oracle(made, batch)
        out.pred_boxes[..., 0] += 0.24 * out.pred_boxes[..., 2]  # IoU 0.61
        return out

    made.task.scored = moved
    found = made.measured()
    assert found["validation/map_50"] == pytest.approx(1.0)
    assert found["validation/map_75"] == 0.0
    assert found["validation/map"] == pytest.approx(0.3)  # right at 0.5, 0.55 and 0.6 of ten
    assert made.task.higher_is_better("validation/map")


def test_the_loss_is_the_models_and_counts_boxes(tmp_path: Path) -> None:
    made = run(tmp_path)
    batch = made.batch()
    out = made.task.eval().learned(batch)
    labels = [
        {"class_labels": c[c >= 0], "boxes": b[c >= 0]} for c, b in zip(batch["classes"], batch["boxes"], strict=True)
    ]
    own = made.model(pixel_values=batch["pixel_values"], pixel_mask=batch["pixel_mask"], labels=labels)
    assert torch.equal(out.loss_sum, own.loss_sum)
    assert int(made.task.targets(batch)) == int(out.loss_count) == 5
    out.loss.backward()
    assert all(p.grad is not None for n, p in made.model.named_parameters() if n.startswith("head"))


def test_a_mirrored_image_has_mirrored_boxes(tmp_path: Path) -> None:
    made = run(tmp_path, flip=0.5)
    plain, train = made.rows("train"), made.data.train_rows
    seen = set()
    for epoch in range(12):
        one, other = plain.row(1, 0, epoch), train.row(1, 0, epoch)
        flipped = not np.array_equal(one["boxes"], other["boxes"])
        seen.add(flipped)
        if flipped:
            np.testing.assert_allclose(other["boxes"][:, 0], 1 - one["boxes"][:, 0], rtol=1e-6)
            np.testing.assert_array_equal(other["boxes"][:, 1:], one["boxes"][:, 1:])
            np.testing.assert_array_equal(other["pixel_values"], one["pixel_values"][..., ::-1])
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("objects", "says"),
    [
        ({"bbox": [[30, 0, 20, 5]], "category": ["cat"]}, r"a box 1 from 30, 0 to 50, 5, outside the image of 40 x 20"),
        ({"bbox": [[1, 1, 0, 5]], "category": ["cat"]}, r"a box 1 of 0 x 5 pixels; it has no area"),
        ({"bbox": [[1, 1, 5]], "category": ["cat"]}, r"a box 1 that is \[1, 1, 5\]; left, top, width and height"),
        ({"bbox": [[1, 1, 5, 5]], "category": []}, r"has 1 boxes and 0 categories"),
        ([1, 2], r"'objects' is a list, and \{bbox: "),
    ],
    ids=["outside", "no area", "three numbers", "no category", "no object"],
)
def test_bad_boxes_are_named(tmp_path: Path, objects: Any, says: str) -> None:
    given = rows(tmp_path)
    given[0]["objects"] = objects
    with pytest.raises(DataError, match=rf"line 1: .*{says}"):
        run(tmp_path, given)


def test_it_fits_detectors_alone() -> None:
    with pytest.raises(SpecError, match="detection does not fit this single_tower: it needs a detector"):
        Spec.of({"kind": "detection"}, "task", "task").build(model=build(compose_model("vit_tiny").check().config))


def test_scenes_are_the_same_for_a_seed_and_their_boxes_hold_the_digits() -> None:
    source = DigitScenes(count=20, held_out=5)
    table, again = (DigitScenes(count=20, held_out=5).tables()["train"][0] for _ in range(2))
    for number in range(20):
        scene, other = table.read(number), again.read(number)
        np.testing.assert_array_equal(scene["image"], other["image"])
        assert scene["objects"] == other["objects"]
        assert 1 <= len(scene["objects"]["bbox"]) <= 3
        outside = scene["image"].copy()
        for left, top, width, height in scene["objects"]["bbox"]:
            inside = outside[top : top + height, left : left + width]
            assert inside.max() > 150
            inside[:] = 0
        assert outside.max() < 40
    assert not np.array_equal(
        table.read(0)["image"], DigitScenes(count=20, seed=1).tables()["train"][0].read(0)["image"]
    )
    opened = source.open(Detection.reads(Detection.__new__(Detection)))
    assert {name: len(records) for name, records in opened.splits.items()} == {"train": 20, "validation": 5, "test": 0}
    with pytest.raises(DataError, match=r"data\.zoom=9 makes digits of 72 pixels; take 2 to 4"):
        DigitScenes(zoom=9)
