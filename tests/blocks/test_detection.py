"""The head for sets of boxes: its loss beside transformers', the least costly pairing, and labels that don't fit."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from mlplatform.blocks.boxes import corners, generalized_iou, match
from mlplatform.blocks.detection import Detection
from mlplatform.context import Context, Output
from mlplatform.errors import DataError

CONTEXT = Context(torch.arange(6)[None])


def boxes(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 + 0.5 * torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed))


def objects(*kinds: list[int]) -> list[dict[str, Tensor]]:
    return [
        {"class_labels": torch.tensor(numbers, dtype=torch.long), "boxes": boxes(len(numbers), seed=len(numbers))}
        for numbers in kinds
    ]


def predicted(labels: int = 4, slots: int = 6) -> Output:
    generator = torch.Generator().manual_seed(3)
    return Output(logits=2 * torch.randn(3, slots, labels + 1, generator=generator), pred_boxes=boxes(3, slots, seed=4))


def test_corners_and_generalized_iou_are_torchvisions() -> None:
    a, b = boxes(5, seed=1), boxes(7, seed=2)
    assert torch.allclose(corners(a), box_convert(a, "cxcywh", "xyxy"))
    expected = generalized_box_iou(corners(a), corners(b))
    assert torch.allclose(generalized_iou(corners(a)[:, None], corners(b)), expected, atol=1e-6)
    apart = torch.tensor([[0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0]])
    assert generalized_iou(apart[0], apart[1]).item() == pytest.approx(-1 / 3)  # a third of the hull is in neither


def test_the_pairing_costs_least() -> None:
    out, targets, costs = predicted(slots=4), objects([1, 3, 0], [2], [1, 1]), (1.0, 5.0, 2.0)
    for number, (slots, things) in enumerate(match(out.logits, out.pred_boxes, targets, costs)):
        given, true = out.pred_boxes[number], targets[number]["boxes"]
        near = (given[:, None] - true).abs().sum(-1)
        likely = out.logits[number].softmax(-1)[:, targets[number]["class_labels"]]
        cost = costs[1] * near - costs[0] * likely - costs[2] * generalized_box_iou(corners(given), corners(true))
        assert sorted(things.tolist()) == list(range(len(true)))
        least = min(cost[list(chosen), range(len(true))].sum() for chosen in permutations(range(4), len(true)))
        assert torch.allclose(cost[slots, things].sum(), least, atol=1e-5)


@pytest.mark.parametrize("targets", [objects([1, 3], [], [0, 2, 2]), objects([], [], [])], ids=["some", "none"])
@pytest.mark.parametrize(
    "weights", [{}, {"class_cost": 3.0, "box_weight": 1.0, "giou_weight": 7.0, "empty_weight": 0.5}]
)
def test_losses_equal_transformers(targets: list[dict[str, Tensor]], weights: dict[str, float]) -> None:
    head = Detection(8, labels=4, **weights)
    out = predicted()
    config = SimpleNamespace(
        class_cost=weights.get("class_cost", 1), bbox_cost=5, giou_cost=2, num_labels=4, auxiliary_loss=False,
        eos_coefficient=weights.get("empty_weight", 0.1), bbox_loss_coefficient=weights.get("box_weight", 5),
        giou_loss_coefficient=weights.get("giou_weight", 2),
    )  # fmt: skip
    expected, parts, _ = ForObjectDetectionLoss(out.logits, targets, "cpu", out.pred_boxes, config)
    ours = head.losses(out, targets)
    assert ours.keys() == parts.keys()
    for name, value in parts.items():
        assert torch.allclose(ours[name], value, atol=1e-6), name
    total, count = head.total(ours, targets)
    assert count == sum(len(target["boxes"]) for target in targets)
    assert torch.allclose(total / count.clamp(min=1), expected, atol=1e-6)


def test_the_loss_alone_is_the_same_sum() -> None:
    torch.manual_seed(0)
    head, x, targets = Detection(8, labels=4), torch.randn(3, 6, 8), objects([1], [], [3, 3])
    total, count = head.loss(x, targets, CONTEXT)
    assert torch.equal(total, head.total(head.losses(head(x, CONTEXT), targets), targets)[0])
    assert count == 3


def test_a_box_is_within_the_image_and_a_prediction_that_is_no_number_is_paired_last() -> None:
    torch.manual_seed(0)
    out = Detection(8, labels=4)(100 * torch.randn(3, 6, 8), CONTEXT)
    assert out.pred_boxes.min() >= 0
    assert out.pred_boxes.max() <= 1
    given = predicted()
    given.logits[0, 2] = float("nan")
    [(slots, _), *_] = match(given.logits, given.pred_boxes, objects([0, 1, 2, 3, 0], [], []), (1.0, 5.0, 2.0))
    assert 2 not in slots


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"class_labels": torch.tensor([4, 0])}, "class_labels has 4; the head's are 0 to 3"),
        ({"class_labels": torch.tensor([1])}, r"boxes is \[2, 4\] beside 1 class_labels"),
        ({"boxes": torch.tensor([[0.5, 0.5, -0.1, 0.1], [0.1, 0.1, 0.1, 0.1]])}, "below 0"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(change: dict[str, Any], said: str) -> None:
    head, targets = Detection(8, labels=4), objects([1, 2], [], [])
    targets[0] |= change
    with pytest.raises(DataError, match=said) as error:
        head.loss(torch.zeros(3, 6, 8), targets, CONTEXT)
    assert "labels.0" in str(error.value)
    with pytest.raises(DataError, match="labels are of 2 images, the batch has 3"):
        head.loss(torch.zeros(3, 6, 8), objects([1], []), CONTEXT)
