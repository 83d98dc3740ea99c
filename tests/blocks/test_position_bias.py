"""Biases on attention scores, one distance at a time."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from mlplatform.blocks.position_bias import Alibi, RelativeBuckets
from mlplatform.context import Cache, Context
from mlplatform.errors import SpecError


def bucket(distance: int, buckets: int, furthest: int, bidirectional: bool) -> int:
    """T5's rule, from the text of arXiv:1910.10683 and its code: half exact, half by logarithm."""
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return first + distance
    share = math.log(distance / exact) / math.log(furthest / exact)
    return first + min(exact + int(share * (buckets - exact)), buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20)])
def test_buckets(bidirectional: bool, buckets: int, furthest: int) -> None:
    block = RelativeBuckets(3, buckets=buckets, max_distance=furthest, bidirectional=bidirectional)
    distances = [d for d in range(-200, 201) if abs(d) not in (16, 32, 64, 128)]  # where fp32 and fp64 may round apart
    got = block.bucket(torch.tensor(distances)).tolist()
    assert got == [bucket(d, buckets, furthest, bidirectional) for d in distances]


@pytest.mark.parametrize(
    ("buckets", "furthest", "bidirectional", "said"),
    [
        (1, 128, False, "buckets=1 can't tell distances apart; 2 are the least"),
        (3, 128, True, "buckets=3 can't tell distances apart; 4 are the least"),
        (32, 16, False, "max_distance=16 lies within the 16 distances with a bucket of their own; set it above them"),
        (32, 8, True, "max_distance=8 lies within the 8 distances"),
    ],
)
def test_buckets_that_are_none(buckets: int, furthest: int, bidirectional: bool, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        RelativeBuckets(3, buckets=buckets, max_distance=furthest, bidirectional=bidirectional)
    RelativeBuckets(3, buckets=max(buckets, 4), max_distance=furthest + 1, bidirectional=bidirectional)


@pytest.mark.parametrize("past", [0, 3])
def test_relative_buckets_look_up_the_distance(past: int) -> None:
    block = tiny.stirred(RelativeBuckets(3, buckets=8, max_distance=20, bidirectional=False))
    cache = Cache()
    cache.length = past
    bias = block(Context(torch.arange(past, past + 5)[None], cache=cache), 5)
    assert bias.shape == (1, 3, 5, past + 5)
    for q in range(5):
        for k in range(past + 5):
            assert torch.equal(bias[0, :, q, k], block.table.weight[bucket(k - q - past, 8, 20, False)])  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        (2, [2**-4, 2**-8]),
        (8, [2**-i for i in range(1, 9)]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
    ],
)
def test_alibi(heads: int, slopes: list[float]) -> None:
    """arXiv:2108.12409, section 3: a geometric sequence; for other numbers, every other of the next one's too."""
    block = Alibi(heads)
    torch.testing.assert_close(torch.tensor(block.slopes()), torch.tensor(slopes))
    bias = block(Context(torch.arange(4)[None]), 4)
    assert bias.shape == (1, heads, 4, 4)
    for q in range(4):
        for k in range(q + 1):
            torch.testing.assert_close(bias[0, :, q, k], -(q - k) * torch.tensor(slopes))
    assert not list(block.parameters())


def test_a_tower_gives_its_bias_to_every_layer() -> None:
    from mlplatform.models import build

    trunk = tiny.tower(position_bias={"kind": "alibi"})
    del trunk["layer"]["attention"]["rope"]
    plain = {**trunk, "position_bias": None}
    with_bias = tiny.stirred(build({"kind": "single_tower", "trunk": trunk}))
    without = tiny.stirred(build({"kind": "single_tower", "trunk": plain}))
    tokens = torch.randint(50, (1, 9), generator=torch.Generator().manual_seed(0))
    first, second = with_bias(input_ids=tokens).last_hidden_state, without(input_ids=tokens).last_hidden_state
    torch.testing.assert_close(first[:, 0], second[:, 0])  # a token alone has no distance
    assert not torch.allclose(first[:, -1], second[:, -1], atol=1e-3)
