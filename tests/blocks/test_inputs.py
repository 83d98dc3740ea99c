"""What becomes of a batch before the first layer: tokens, positions, segments, patches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from mlplatform.context import Cache, Context
from mlplatform.errors import DataError, SpecError
from mlplatform.models import build
from mlplatform.registry import Spec

DIM = 8
NORM = Spec.of({"kind": "layer_norm"}, "norm")


def block(kind: str = "tokens", **fields: Any) -> Any:
    if kind == "tokens":
        fields.setdefault("vocab", 11)
    built = Spec.of({"kind": kind, **fields}, "input").build(dim=DIM, tower_norm=NORM, context_length=16)
    return tiny.stirred(built)


def run(module: Any, batch: dict[str, Tensor], **context: Any) -> Tensor:
    length, device = module.size(batch)
    return module(batch, Context.of(batch | context, length, device, context.get("cache")))


TOKENS = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])


def test_tokens_are_rows_of_the_table() -> None:
    module = block()
    assert torch.equal(run(module, {"input_ids": TOKENS}), module.table.weight[TOKENS])


@pytest.mark.parametrize(("scale", "factor"), [("sqrt_dim", math.sqrt(DIM)), (2, 2.0), (0.5, 0.5)])
def test_scale(scale: Any, factor: float) -> None:
    module = block(scale=scale)
    torch.testing.assert_close(run(module, {"input_ids": TOKENS}), module.table.weight[TOKENS] * factor)
    given = torch.ones(2, 4, DIM)
    torch.testing.assert_close(run(module, {"inputs_embeds": given}), given)


@pytest.mark.parametrize("segments", [None, torch.tensor([[0, 0, 1, 1], [1, 0, 1, 0]])])
def test_the_sum_of_bert(segments: Tensor | None) -> None:
    module = block(positions={"kind": "learned"}, segments=2, norm=True)
    batch = {"input_ids": TOKENS} | ({} if segments is None else {"token_type_ids": segments})
    kinds = torch.zeros_like(TOKENS) if segments is None else segments
    total = module.table.weight[TOKENS] + module.segments.weight[kinds] + module.positions.table.weight[:4]
    want = F.layer_norm(total, (DIM,), module.norm.weight, module.norm.bias)
    torch.testing.assert_close(run(module, batch), want)


def test_learned_positions_follow_position_ids_offset_and_cache() -> None:
    module = block(positions={"kind": "learned", "offset": 2})
    assert module.positions.table.weight.shape == (18, DIM)
    places = torch.tensor([[0, 1, 0, 1], [5, 6, 7, 8]])
    rows, table = module.table.weight[TOKENS], module.positions.table.weight
    torch.testing.assert_close(run(module, {"input_ids": TOKENS, "position_ids": places}), rows + table[places + 2])
    cache = Cache()
    cache.length = 7
    torch.testing.assert_close(run(module, {"input_ids": TOKENS}, cache=cache), rows + table[9:13])


def test_a_sequence_longer_than_the_table() -> None:
    module = block(positions={"kind": "learned"})
    with pytest.raises((SpecError, DataError), match="a sequence of 17 tokens is longer than context_length=16"):
        run(module, {"input_ids": torch.zeros(1, 17, dtype=torch.long)})
    cache = Cache()
    cache.length = 16
    with pytest.raises((SpecError, DataError), match="a sequence of 17 tokens"):
        run(module, {"input_ids": torch.zeros(1, 1, dtype=torch.long)}, cache=cache)


def test_a_batch_without_tokens() -> None:
    with pytest.raises(DataError, match="the batch has no 'input_ids'; this model reads tokens"):
        run(block(), {"pixel_values": torch.zeros(1)})


def test_shared_tokens_use_the_other_towers_table_and_own_none() -> None:
    model = tiny.stirred(build(tiny.encoder_decoder()))
    assert "decoder.input.table.weight" not in model.state_dict()
    assert list(model.decoder.input.parameters()) == []  # type: ignore[union-attr]
    rows = run(model.decoder.input, {"input_ids": TOKENS})  # type: ignore[union-attr]
    assert torch.equal(rows, model.encoder.input.table.weight[TOKENS])  # type: ignore[union-attr, index]


def test_shared_tokens_without_another_tower() -> None:
    with pytest.raises(SpecError, match=r"model\.trunk\.input: .*shared_tokens"):
        build({"kind": "single_tower", "trunk": tiny.tower(input={"kind": "shared_tokens"})})


# ---- patches ----
def image(height: int = 8, width: int = 8) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("special", [0, 1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_a_patch_is_a_matrix_product_of_its_pixels(special: int, bias: bool) -> None:
    module, pixels = block("patches", image_size=8, patch=4, special=special, bias=bias), image()
    out = run(module, {"pixel_values": pixels})
    assert out.shape == (2, special + 4, DIM)
    assert module.size({"pixel_values": pixels})[0] == special + 4
    matrix, places = module.patch.weight.flatten(1), module.positions.weight
    for row in range(2):
        for column in range(2):
            square = pixels[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
            number = special + 2 * row + column
            want = square @ matrix.T + (module.patch.bias if bias else 0) + places[number]
            torch.testing.assert_close(out[:, number], want, rtol=1e-4, atol=1e-5)
    if special:
        torch.testing.assert_close(out[:, :special], (module.special + places[:special]).expand(2, -1, -1))


def test_masked_patches_have_one_vector() -> None:
    module, pixels = block("patches", image_size=8, patch=4, mask_token=True), image()
    hidden = torch.tensor([[True, False, False, True], [False] * 4])
    plain, masked = (
        run(module, {"pixel_values": pixels}),
        run(module, {"pixel_values": pixels, "bool_masked_pos": hidden}),
    )
    assert torch.equal(plain[1], masked[1])
    assert torch.equal(plain[0, [0, 2, 3]], masked[0, [0, 2, 3]])
    torch.testing.assert_close(masked[0, [1, 4]], module.mask_token + module.positions.weight[[1, 4]])


def test_images_of_another_size() -> None:
    module = block("patches", image_size=8, patch=4)
    with pytest.raises(DataError, match="images are 8x12 pixels, the model takes 8x8; resize them or pass interpolate"):
        run(module, {"pixel_values": image(8, 12)})
    out = run(module, {"pixel_values": image(8, 12), "interpolate_pos_encoding": torch.tensor(True)})
    assert out.shape == (2, 1 + 6, DIM)
    same = run(module, {"pixel_values": image(), "interpolate_pos_encoding": torch.tensor(True)})
    assert torch.equal(same, run(module, {"pixel_values": image()}))


def test_images_that_are_none() -> None:
    module = block("patches", image_size=8, patch=4)
    with pytest.raises(DataError, match="the batch has no 'pixel_values'"):
        run(module, {"input_ids": TOKENS})
    with pytest.raises(DataError, match="pixel_values has 4 channels; this model reads 3"):
        run(module, {"pixel_values": torch.zeros(1, 4, 8, 8)})
    with pytest.raises(SpecError, match="image_size=3 is smaller than patch=4"):
        block("patches", image_size=3, patch=4)
