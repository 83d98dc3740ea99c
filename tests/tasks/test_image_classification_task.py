"""Training on soft targets: mixed images, smoothed classes, and labels that are exact under resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from records import Run

from mlplatform.cli.compose import compose_model
from mlplatform.processors.image import ImageProcessor
from mlplatform.registry import Spec
from mlplatform.tasks.mixing import smoothed, soft_cross_entropy_sum

SMALL = ["trunk.dim=16", "trunk.depth=1", "trunk.layer.mlp.width=16", "trunk.layer.attention.heads=2"]
SMALL += ["trunk.input.image_size=8", "trunk.input.patch=4", "trunk.context_length=5"]
SMALL += ["heads.image_classification.labels=3"]
PROCESSOR = ImageProcessor({"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}})


def run(folder: Path, **task: Any) -> Run:
    rows = []
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "label": "abc"[number % 3]})
    model = compose_model("vit_tiny", SMALL).check().config
    return Run(folder, {"kind": "image_classification", **task}, model, rows, tools={"processor": PROCESSOR})


def mix(kind: str, **options: Any) -> Any:
    return Spec.of({"kind": kind, **options}, "mix", "mix").build()


def test_soft_targets_cost_what_torch_says() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 4), torch.randint(4, (5,))
    hard = F.one_hot(labels, 4).float()
    soft = 0.3 * hard + 0.7 * hard.roll(1, 0)
    torch.testing.assert_close(soft_cross_entropy_sum(logits, soft), F.cross_entropy(logits, soft, reduction="sum"))
    torch.testing.assert_close(
        soft_cross_entropy_sum(logits, smoothed(hard, 0.1)),
        F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1),
    )


def test_mixup_weighs_images_and_classes_alike() -> None:
    torch.manual_seed(0)
    images, targets = torch.eye(4).reshape(4, 1, 2, 2), torch.eye(4)
    seen = set()
    for _ in range(50):
        mixed, soft = mix("mixup", alpha=1.0)(images, targets)
        torch.testing.assert_close(mixed.flatten(1), soft)  # an image is its own class here
        torch.testing.assert_close(soft.sum(1), torch.ones(4))
        seen.add(round(float(soft.max()), 2))
    assert len(seen) > 10


def test_cutmix_weighs_classes_by_area() -> None:
    torch.manual_seed(0)
    images = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 9, 7).contiguous()
    for _ in range(50):
        mixed, soft = mix("cutmix")(images, torch.eye(3))
        for row in range(3):
            area = torch.stack([(mixed[row] == value).float().mean() for value in range(3)])
            torch.testing.assert_close(soft[row], area)


def test_the_loss_of_a_step_is_that_of_its_mixture(tmp_path: Path) -> None:
    made = run(tmp_path, mix={"kind": "mixup", "alpha": 1.0}, label_smoothing=0.1)
    batch, task = made.batch(), made.task.eval()
    torch.manual_seed(3)
    out = task.learned(batch)
    torch.manual_seed(3)
    images, soft = task.mix(batch["pixel_values"], smoothed(F.one_hot(batch["labels"], 3).float(), 0.1))
    logits = made.model(pixel_values=images).logits
    torch.testing.assert_close(out.loss_sum, F.cross_entropy(logits, soft, reduction="sum"))
    assert int(out.loss_count) == len(batch["labels"])
    out.loss_sum.backward()
    assert all(p.grad is not None for n, p in made.model.named_parameters() if n.startswith("head"))


def test_without_either_the_loss_is_the_models(tmp_path: Path) -> None:
    made = run(tmp_path)
    batch = made.batch()
    own = made.model.eval()(**{k: v for k, v in batch.items() if k in ("pixel_values", "labels")})
    assert torch.equal(made.task.learned(batch).loss_sum, own.loss_sum)


def test_validation_is_neither_augmented_nor_mixed(tmp_path: Path) -> None:
    changed = run(tmp_path, mix={"kind": "cutmix"}, label_smoothing=0.2, augment=[{"kind": "rand_augment"}])
    assert changed.measured() == run(tmp_path).measured()


def test_a_row_is_augmented_by_its_epoch_and_number_and_keeps_its_label(tmp_path: Path) -> None:
    made = run(tmp_path, augment=[{"kind": "crop"}, {"kind": "shift", "most": 1}, {"kind": "rand_augment"}])
    rows, plain = made.data.train_rows, made.rows("train")
    for number in range(6):
        one, again, later = (rows.row(number, 0, epoch) for epoch in (2, 2, 3))
        np.testing.assert_array_equal(one["pixel_values"], again["pixel_values"])
        assert not np.array_equal(one["pixel_values"], later["pixel_values"])
        assert one["labels"] == later["labels"] == plain.row(number, 0, 0)["labels"]
