"""Towers over maps and slots: positions by hand, and vectors that reach queries and keys but not values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlplatform.blocks.attention import Attention, CrossAttention
from mlplatform.blocks.feature_maps import FeatureMap, Learned2D, LearnedSlots, Sine2D
from mlplatform.context import Context
from mlplatform.errors import DataError, SpecError
from mlplatform.registry import Spec

DIM = 8


class Network(nn.Module):
    """What a feature_map asks of the network before it."""

    dim = 5

    def maps(self, pixels: Tensor) -> Tensor:
        return pixels


def reader(kind: str = "sine_2d", shared: nn.Module | None = None, **fields: Any) -> FeatureMap:
    positions = Spec({"kind": kind, **fields}, "positions", "grid_positions")
    return FeatureMap(DIM, shared or Network(), positions=positions).eval()


def empty(length: int = 6) -> Context:
    return Context(torch.arange(length)[None])


def test_sines_by_hand() -> None:
    """Row 2 of 3 and column 3 of 3 real ones, of four: 2 pi * 2/3 and 2 pi, over 100 ** (2 * pair / 4)."""
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[:, 3] = mask[:, :, 3] = False
    got = Sine2D(DIM, temperature=100.0)(mask, torch.float32)[0, 1, 2]
    row, column = 2 * math.pi * 2 / 3, 2 * math.pi
    waves = [f(angle / slow) for angle in (row, column) for slow in (1, 10) for f in (math.sin, math.cos)]
    assert torch.allclose(got, torch.tensor(waves), atol=1e-5)


def test_learned_2d_puts_columns_first() -> None:
    torch.manual_seed(0)
    positions = Learned2D(DIM, size=5)
    got = positions(torch.ones(2, 3, 4, dtype=torch.bool), torch.float32)
    assert got.shape == (1, 3, 4, DIM)
    assert torch.equal(got[0, 2, 1], torch.cat((positions.columns.weight[1], positions.rows.weight[2])))
    with pytest.raises(DataError, match="6x4; learned_2d has size=5"):
        positions(torch.ones(1, 6, 4), torch.float32)


def test_a_map_is_read_row_by_row_and_says_its_places() -> None:
    torch.manual_seed(0)
    block, grid, context = reader(), torch.randn(2, 5, 2, 3), empty()
    x = block({"feature_map": grid}, context)
    weight, bias = block.project.weight[:, :, 0, 0], block.project.bias
    assert block.size({"feature_map": grid})[0] == 6
    assert torch.allclose(x[1, 4], weight @ grid[1, :, 1, 1] + bias, atol=1e-6)
    whole = Sine2D(DIM)(torch.ones(1, 2, 3, dtype=torch.bool), torch.float32)
    assert torch.equal(context.places[0, 4], whole[0, 1, 1])  # type: ignore[index]
    part = torch.ones(2, 2, 3, dtype=torch.bool)
    part[1, :, 2] = False
    block({"feature_map": grid, "feature_mask": part}, context)
    assert torch.equal(context.places[0, 4], whole[0, 1, 1])  # type: ignore[index]
    assert not torch.equal(context.places[1, 4], whole[0, 1, 1])  # type: ignore[index]


def test_slots_start_at_zero_and_tell_themselves_apart_by_places() -> None:
    torch.manual_seed(0)
    block, context = LearnedSlots(DIM, 3), empty(3)
    context.memory = torch.zeros(2, 6, DIM)
    assert torch.equal(block({}, context), torch.zeros(2, 3, DIM))
    assert torch.equal(context.places[0], block.slots.weight)  # type: ignore[index]
    given = torch.randn(2, 3, DIM)
    assert torch.equal(block({"inputs_embeds": given}, context), given)
    assert block.size({})[0] == 3


def test_places_reach_queries_and_keys_but_not_values() -> None:
    torch.manual_seed(0)
    norm = Spec({"kind": "layer_norm"}, "norm", "norm")
    block = Attention(DIM, norm, 6, heads=2, mask="full", bias=True).eval()
    x, places, context = torch.randn(2, 6, DIM), torch.randn(1, 6, DIM), empty()
    context.places = places
    q, k, v = block.split(block.q(x + places)), block.split(block.k(x + places)), block.split(block.v(x))
    expected = block.join((q @ k.transpose(-1, -2) / 2).softmax(-1) @ v)
    assert torch.allclose(block(x, context), expected, atol=1e-5)
    assert not torch.allclose(block(x, empty()), expected, atol=1e-3)


def test_a_memorys_places_reach_keys_alone() -> None:
    torch.manual_seed(0)
    block = CrossAttention(DIM, DIM, heads=2, bias=True).eval()
    x, memory, context = torch.randn(2, 3, DIM), torch.randn(2, 6, DIM), empty(3)
    context.memory, context.places, context.memory_places = memory, torch.randn(1, 3, DIM), torch.randn(1, 6, DIM)
    q, v = block.split(block.q(x + context.places)), block.split(block.v(memory))
    k = block.split(block.k(memory + context.memory_places))
    expected = block.join((q @ k.transpose(-1, -2) / 2).softmax(-1) @ v)
    assert torch.allclose(block(x, context), expected, atol=1e-5)


def test_what_cannot_be_built_or_read_is_one_line() -> None:
    with pytest.raises(SpecError, match="multiple of 4"):
        Sine2D(6)
    with pytest.raises(SpecError, match="even number"):
        Learned2D(5)
    with pytest.raises(SpecError, match="a network before it that gives maps"):
        reader(shared=nn.Linear(2, 2))
    with pytest.raises(DataError, match="no 'feature_map'"):
        reader().size({})
