"""Boxes in pixels, beside transformers' post-processing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import DetrImageProcessor

from mlplatform.errors import DataError
from mlplatform.processors.boxes import detected_objects


def found() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 4 * torch.randn(2, 9, 6, generator=generator), torch.rand(2, 9, 4, generator=generator)


@pytest.mark.parametrize("sizes", [None, [(480, 640), (333, 500)], torch.tensor([[480, 640], [333, 500]])])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0])
def test_objects_equal_transformers(sizes: list[tuple[int, int]] | torch.Tensor | None, threshold: float) -> None:
    logits, boxes = found()
    outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
    expected = DetrImageProcessor().post_process_object_detection(outputs, threshold, sizes)
    got = detected_objects(logits, boxes, sizes, threshold=threshold)
    assert len(got) == len(expected) == 2
    assert any(len(image["scores"]) for image in got) == (threshold < 1)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_other_shapes_are_one_line() -> None:
    logits, boxes = found()
    with pytest.raises(DataError, match="sizes are of 1 images, the logits of 2"):
        detected_objects(logits, boxes, [(480, 640)])
    with pytest.raises(DataError, match=r"pred_boxes \[2, 8, 4\]"):
        detected_objects(logits, boxes[:, :8])
