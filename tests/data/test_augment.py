"""Changes of training images: what each does, and that a row's own stream alone decides what is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from mlplatform.data.augment import Augment, shown
from mlplatform.data.records import Record
from mlplatform.errors import SpecError
from mlplatform.registry import Spec

IMAGE = np.arange(3 * 12 * 10, dtype=np.uint8).reshape(3, 12, 10)


def made(kind: str, **options: Any) -> Augment:
    return Spec.of({"kind": kind, **options}, "augment", "augment").build()


def drawn(change: Augment, seed: int) -> np.ndarray[Any, Any]:
    return change(IMAGE, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("mirror", {}), ("shift", {"most": 3}), ("crop", {}), ("rand_augment", {"operations": 3, "magnitude": 20})],
)
def test_the_rows_stream_alone_decides(kind: str, options: dict[str, Any]) -> None:
    change = made(kind, **options)
    torch.manual_seed(1)
    first = [drawn(change, seed) for seed in range(20)]
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    again = [drawn(change, seed) for seed in range(20)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(state, torch.random.get_rng_state())  # the training's stream is left as it was
    assert len({part.tobytes() for part in first}) > 1
    assert all(part.dtype == np.uint8 for part in first)


def test_rand_augment_is_torchvisions() -> None:
    change, random = made("rand_augment", operations=2, magnitude=15), np.random.default_rng(7)
    for seed in range(10):
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**63)))
        theirs = v2.RandAugment(2, 15)(torch.from_numpy(IMAGE.copy())).numpy()
        np.testing.assert_array_equal(drawn(change, seed), theirs)
    assert change(IMAGE, random).shape == IMAGE.shape


def test_mirrored_images_are_mirrored() -> None:
    parts = [drawn(made("mirror", share=0.25), seed) for seed in range(400)]
    turned = [np.array_equal(part, IMAGE[..., ::-1]) for part in parts]
    assert all(t or np.array_equal(part, IMAGE) for t, part in zip(turned, parts, strict=True))
    assert 70 <= sum(turned) <= 130


def test_a_shift_moves_by_whole_pixels() -> None:
    offsets = set()
    for seed in range(200):
        part = drawn(made("shift", most=1), seed)
        wide = np.pad(IMAGE, ((0, 0), (1, 1), (1, 1)), mode="edge")
        offsets |= {(y, x) for y in range(3) for x in range(3) if np.array_equal(part, wide[:, y : y + 12, x : x + 10])}
    assert offsets == {(y, x) for y in range(3) for x in range(3)}


def test_a_crop_is_a_part_within_its_limits() -> None:
    change = made("crop", area=[0.25, 0.5], ratio=[0.5, 2.0])
    for seed in range(100):
        part = drawn(change, seed)
        high, wide = part.shape[1:]
        if part.shape != IMAGE.shape:
            assert 0.25 * 120 - 12 <= high * wide <= 0.5 * 120 + 12
        windows = np.lib.stride_tricks.sliding_window_view(IMAGE[0], (high, wide))
        assert (windows == part[0]).all((2, 3)).any()


def test_validation_sees_the_image_itself() -> None:
    record = Record({"image": IMAGE}, {}, "rows: line 1")
    changes = [made("mirror", share=0.999)]
    assert shown(record, changes, None) is IMAGE
    np.testing.assert_array_equal(shown(record, changes, np.random.default_rng(0)), IMAGE[..., ::-1])


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("crop", {"area": [0.5, 0.2]}, r"area=\[0\.5, 0\.2\]: the least and the most, above 0 and up to 1"),
        ("crop", {"area": [0.5, 2.0]}, r"area=\[0\.5, 2\.0\]"),
        ("crop", {"ratio": [0.0, 2.0]}, r"ratio=\[0\.0, 2\.0\]: the least and the most, above 0$"),
        ("rand_augment", {"magnitude": 31}, r"magnitude=31; it is 0 to 30"),
    ],
)
def test_options_are_checked(kind: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        made(kind, **options)
