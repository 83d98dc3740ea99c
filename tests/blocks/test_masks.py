"""Who may look at whom, one pair at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mlplatform.blocks.masks import attention_mask, memory_mask
from mlplatform.context import Cache, Context

LENGTH = 6
PADDINGS = {
    "none": None,
    "right": torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool(),
    "left": torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]]).bool(),
    "all": torch.zeros(2, 6).bool(),
}
DOCUMENTS = torch.tensor([[1, 1, 2, 2, 2, 0], [1, 2, 3, 3, 4, 4]])


def expected(
    batch: int, causal: bool, window: tuple[int, int] | None, padding: Tensor | None, documents: Tensor | None
) -> Tensor:
    allowed = torch.zeros(batch, LENGTH, LENGTH, dtype=torch.bool)
    for b, q, k in itertools.product(range(batch), range(LENGTH), range(LENGTH)):
        yes = k <= q or not causal
        if window is not None:
            yes = yes and -window[1] <= q - k <= window[0]
        if padding is not None:
            yes = yes and bool(padding[b, k])
        if documents is not None:
            yes = yes and bool(documents[b, q] == documents[b, k])
        allowed[b, q, k] = yes
    return allowed | ~allowed.any(-1, keepdim=True)  # who may see nobody sees everybody: nobody reads what it becomes


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, (2, 0), (1, 1), (0, 0)])
@pytest.mark.parametrize("padding", list(PADDINGS))
@pytest.mark.parametrize("packed", [False, True])
def test_pair_by_pair(causal: bool, window: tuple[int, int] | None, padding: str, packed: bool) -> None:
    context = Context(torch.arange(LENGTH)[None], PADDINGS[padding], DOCUMENTS if packed else None)
    mask, plain = attention_mask(context, LENGTH, LENGTH, torch.float32, causal=causal, window=window)
    want = expected(2, causal, window, PADDINGS[padding], DOCUMENTS if packed else None)
    if mask is None:
        mask = torch.zeros(LENGTH, LENGTH)
        if plain:
            mask = mask.masked_fill(~torch.ones(LENGTH, LENGTH).tril().bool(), float("-inf"))
    else:
        assert not plain, "torch would lay its causal order on a mask that has one"
    assert torch.equal(mask.expand(2, 1, LENGTH, LENGTH)[:, 0] == 0, want)
    assert set(mask.unique().tolist()) <= {0.0, float("-inf")}
    assert (mask == 0).any(-1).all(), "an empty row would be NaN"


@pytest.mark.parametrize(
    ("causal", "window", "padded"), [(True, None, False), (True, (2, 0), False), (True, None, True)]
)
def test_new_tokens_after_cached_ones_see_what_they_would_without(
    causal: bool, window: tuple[int, int] | None, padded: bool
) -> None:
    padding = PADDINGS["left"] if padded else None
    whole, _ = attention_mask(
        Context(torch.arange(LENGTH)[None], padding, torch.ones(2, LENGTH)), LENGTH, LENGTH, torch.float32,
        causal=causal, window=window,
    )  # fmt: skip
    assert whole is not None
    for new in (1, 2):
        cache = Cache()
        cache.length = LENGTH - new
        context = Context(torch.arange(LENGTH - new, LENGTH)[None], padding, cache=cache)
        mask, plain = attention_mask(context, new, LENGTH, torch.float32, causal=causal, window=window)
        assert not plain
        if mask is None:
            mask = torch.zeros(1, 1, 1, 1)
        assert torch.equal(mask.expand(2, 1, new, LENGTH), whole.expand(2, 1, -1, -1)[:, :, -new:])


def test_a_bias_stands_where_looking_is_allowed() -> None:
    bias = torch.randn(1, 3, LENGTH, LENGTH)
    context = Context(torch.arange(LENGTH)[None], PADDINGS["right"], bias=bias)
    mask, _ = attention_mask(context, LENGTH, LENGTH, torch.float32, causal=True, window=None)
    assert mask is not None
    want = expected(2, True, None, PADDINGS["right"], None)[:, None].expand(2, 3, -1, -1)
    assert torch.equal(mask, bias.where(want, float("-inf")))


def test_one_mask_serves_all_layers_alike() -> None:
    context = Context(torch.arange(LENGTH)[None], PADDINGS["right"])

    def mask(window: tuple[int, int] | None, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return attention_mask(context, LENGTH, LENGTH, dtype, causal=True, window=window)[0]

    first = mask(None)
    assert first is mask(None)
    assert first is not mask((2, 0))
    low = mask(None, torch.bfloat16)
    assert low is not None
    assert low.dtype == torch.bfloat16


def test_no_mask_is_made_where_torch_has_a_faster_way() -> None:
    context = Context(torch.arange(LENGTH)[None])
    assert attention_mask(context, LENGTH, LENGTH, torch.float32, causal=True, window=None) == (None, True)
    assert attention_mask(context, LENGTH, LENGTH, torch.float32, causal=False, window=None) == (None, False)
    assert attention_mask(context, 1, LENGTH, torch.float32, causal=True, window=None) == (None, False)
    assert context.memo == {}


def test_memory_mask() -> None:
    context = Context(torch.arange(LENGTH)[None])
    assert memory_mask(context, torch.float32) is None
    context.memory_padding = torch.tensor([[1, 0], [1, 1]])
    mask = memory_mask(context, torch.float32)
    assert mask is not None
    assert mask.tolist() == [[[[0.0, float("-inf")]]], [[[0.0, 0.0]]]]
    assert memory_mask(context, torch.float32) is mask
