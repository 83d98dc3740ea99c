"""Images as rows of patches: the order, the special tokens, positions resized, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from mlplatform.context import Context
from mlplatform.errors import DataError, SpecError
from mlplatform.registry import Spec

DIM, PATCH = 8, 4
NORM = Spec.of({"kind": "layer_norm"}, "norm")


def patches(**fields: Any) -> Any:
    spec = Spec.of({"kind": "patches", "image_size": 12, "patch": PATCH, **fields}, "input")
    return tiny.stirred(spec.build(dim=DIM, tower_norm=NORM))


def images(height: int = 12, width: int = 12, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


def read(block: Any, **batch: Any) -> Tensor:
    length, device = block.size(batch)
    x = block(batch, Context.of(batch, length, device))
    assert x.shape[1] == length
    return x


def by_hand(block: Any, pixels: Tensor) -> Tensor:
    """Each patch, row by row, times the matrix; no positions."""
    matrix = block.patch.weight.flatten(1)
    rows = [
        pixels[:, :, top : top + PATCH, left : left + PATCH].flatten(1) @ matrix.T
        for top in range(0, pixels.shape[2], PATCH)
        for left in range(0, pixels.shape[3], PATCH)
    ]
    x = torch.stack(rows, 1)
    return x if block.patch.bias is None else x + block.patch.bias


@pytest.mark.parametrize("special", [0, 1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_special_tokens_then_patches_row_by_row(special: int, bias: bool) -> None:
    block, pixels = patches(special=special, bias=bias), images()
    want = by_hand(block, pixels)
    if special:
        want = torch.cat((block.special.expand(2, -1, -1), want), 1)
    torch.testing.assert_close(read(block, pixel_values=pixels), want + block.positions.weight)


def test_the_norm_comes_last() -> None:
    block, plain, pixels = patches(norm=True), patches(), images()
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if not k.startswith("norm.")})
    torch.testing.assert_close(read(block, pixel_values=pixels), block.norm(read(plain, pixel_values=pixels)))


def test_marked_patches_become_the_mask_token_and_keep_their_positions() -> None:
    block, pixels = patches(mask_token=True), images()
    marked = torch.zeros(2, 9, dtype=torch.bool)
    marked[0, 4] = marked[1, :3] = True
    plain, masked = read(block, pixel_values=pixels), read(block, pixel_values=pixels, bool_masked_pos=marked)
    want = (block.mask_token + block.positions.weight[1:]).expand(2, -1, -1)
    torch.testing.assert_close(masked[:, 1:][marked], want[marked])
    assert torch.equal(masked[:, 1:][~marked], plain[:, 1:][~marked])


def test_positions_are_resized_for_other_grids() -> None:
    block, pixels = patches(special=2), images(24, 16)
    x = read(block, pixel_values=pixels, interpolate_pos_encoding=True)
    assert x.shape == (2, 2 + 6 * 4, DIM)
    table = block.positions.weight[2:].reshape(3, 3, DIM).permute(2, 0, 1)
    resized = F.interpolate(table[None], size=(6, 4), mode="bicubic", align_corners=False)[0]
    want = by_hand(block, pixels) + resized.permute(1, 2, 0).reshape(24, DIM)
    torch.testing.assert_close(x[:, 2:], want)
    torch.testing.assert_close(x[:, :2], (block.special + block.positions.weight[:2]).expand(2, -1, -1))


def test_an_image_of_its_own_size_is_read_alike_with_the_flag() -> None:
    block, pixels = patches(), images()
    flagged = read(block, pixel_values=pixels, interpolate_pos_encoding=True)
    assert torch.equal(flagged, read(block, pixel_values=pixels))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (
            images(12, 16),
            "images are 12x16 pixels, the model takes 12x12; resize them or pass interpolate_pos_encoding",
        ),
        (images(13, 13), "images are 13x13 pixels"),
        (images(channels=4), "pixel_values has 4 channels; this model reads 3"),
        (images()[0], "pixel_values has 3 dimensions"),
    ],
    ids=["wide", "larger", "four channels", "one image"],
)
def test_images_that_do_not_fit(pixels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(patches(), pixel_values=pixels)


def test_no_images_and_patches_larger_than_the_image() -> None:
    with pytest.raises(DataError, match="the batch has no 'pixel_values'"):
        read(patches())
    with pytest.raises(DataError, match="the batch has 'bool_masked_pos', but this model has no mask_token"):
        read(patches(), pixel_values=images(), bool_masked_pos=torch.zeros(2, 9, dtype=torch.bool))
    with pytest.raises(SpecError, match="image_size=3 is smaller than patch=4"):
        patches(image_size=3)
