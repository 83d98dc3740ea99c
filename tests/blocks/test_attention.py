"""Attention against a loop over heads, and the promises about documents, padding and the cache."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from mlplatform.blocks.attention import Attention, CrossAttention, LogSteps
from mlplatform.context import Cache, Context
from mlplatform.errors import DataError, SpecError
from mlplatform.registry import Spec

DIM, LENGTH = 24, 7
NORM = Spec.of({"kind": "rms_norm"}, "norm")


def attention(**fields: Any) -> Attention:
    spec = Spec.of({"kind": "attention", **fields}, "attention")
    return tiny.stirred(spec.build(dim=DIM, tower_norm=NORM, context_length=64))  # type: ignore[return-value]


def data(length: int = LENGTH, batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(seed))


def context(length: int = LENGTH, **given: Any) -> Context:
    return Context(torch.arange(length)[None], **given)


def by_hand(
    block: Attention | CrossAttention,
    x: Tensor,
    memory: Tensor,
    allowed: Tensor,
    scale: float,
    cap: float | None = None,
) -> Tensor:
    """Softmax attention, one head of one sequence at a time, in fp64."""
    size, share = block.head_dim, block.heads // block.kv_heads
    q, k, v = (module(source).double() for module, source in ((block.q, x), (block.k, memory), (block.v, memory)))
    rows = []
    for b in range(len(x)):
        heads = []
        for h in range(block.heads):
            mine, theirs = slice(h * size, (h + 1) * size), slice(h // share * size, (h // share + 1) * size)
            scores = q[b, :, mine] @ k[b, :, theirs].T * scale
            scores = scores if cap is None else cap * torch.tanh(scores / cap)
            heads.append(scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v[b, :, theirs])
        rows.append(torch.cat(heads, -1))
    return block.out(torch.stack(rows).float())


@pytest.mark.parametrize(
    "heads", [{"heads": 4}, {"heads": 4, "kv_heads": 2}, {"heads": 6, "kv_heads": 1, "head_dim": 10}]
)
@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("more", [{}, {"bias": True}, {"bias": "qvo"}, {"scale": 0.3}, {"window": 4}, {"softcap": 0.7}])
def test_equals_attention_by_hand(heads: dict, mask: str, more: dict) -> None:
    block, x = attention(**heads, mask=mask, **more), data()
    places = torch.arange(LENGTH)
    ahead = places - places[:, None]
    allowed = ahead <= 0 if mask == "causal" else torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    if "window" in more:
        allowed = allowed & ((ahead > -4) if mask == "causal" else (ahead >= -1) & (ahead <= 2))
    want = by_hand(block, x, x, allowed, more.get("scale", block.head_dim**-0.5), more.get("softcap"))
    torch.testing.assert_close(block(x, context()), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_cross_attention_by_hand(kv_heads: int) -> None:
    spec = Spec.of({"kind": "cross_attention", "heads": 4, "kv_heads": kv_heads, "bias": True}, "attention")
    block = tiny.stirred(spec.build(dim=DIM, memory_dim=10))
    x, memory = data(), torch.randn(2, 5, 10, generator=torch.Generator().manual_seed(5))
    seen = torch.ones(LENGTH, 5, dtype=torch.bool)
    got = block(x, context(memory=memory))
    torch.testing.assert_close(got, by_hand(block, x, memory, seen, 6**-0.5), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]
    padded = context(memory=memory, memory_padding=torch.tensor([[1, 1, 1, 0, 0]] * 2))
    seen[:, 3:] = False
    torch.testing.assert_close(block(x, padded), by_hand(block, x, memory, seen, 6**-0.5), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


def test_cross_attention_without_a_memory() -> None:
    block = Spec.of({"kind": "cross_attention", "heads": 4}, "attention").build(dim=DIM, memory_dim=DIM)
    with pytest.raises((SpecError, DataError), match="needs the output of an encoder"):
        block(data(), context())


def test_bias_by_letters() -> None:
    def biased(bias: bool | str) -> str:
        block = attention(heads=4, bias=bias)
        names = {"q": block.q, "k": block.k, "v": block.v, "o": block.out}
        return "".join(letter for letter, module in names.items() if module.bias is not None)

    assert [biased(b) for b in (True, False, "qkv", "qvo")] == ["qkvo", "", "qkv", "qvo"]


def test_qk_norm_comes_before_the_rotation() -> None:
    block, x = attention(heads=4, kv_heads=2, qk_norm=True, rope={"kind": "rope"}), data()
    plain = attention(heads=4, kv_heads=2)
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if k in plain.state_dict()})
    assert block.q_norm is not None
    assert block.k_norm is not None
    assert block.rope is not None
    q, k = block.q_norm(block.split(block.q(x))), block.k_norm(block.split(block.k(x)))
    q, k = block.rope(q, k, context())
    v = block.split(block.v(x)).repeat_interleave(2, 1)
    scores = q @ k.repeat_interleave(2, 1).mT * 6**-0.5
    scores = scores.masked_fill(~torch.ones(LENGTH, LENGTH).tril().bool(), float("-inf"))
    torch.testing.assert_close(block(x, context()), block.join(scores.softmax(-1) @ v), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(block(x, context()), plain(x, context()))


def test_gate() -> None:
    block, x = attention(heads=4, gate=True), data()
    plain = attention(heads=4)
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if not k.startswith("gate")})
    plain.out = torch.nn.Identity()  # type: ignore[assignment]
    assert block.gate is not None
    want = block.out(plain(x, context()) * torch.sigmoid(block.gate(x)))
    torch.testing.assert_close(block(x, context()), want)


def test_temperature_sharpens_far_queries() -> None:
    factors = LogSteps(beta=0.5, every=4)(Context(torch.tensor([[0, 3, 4, 9]])))
    want = [1 + 0.5 * math.log(1 + n) for n in (0, 0, 1, 2)]
    torch.testing.assert_close(factors, torch.tensor(want)[None, None, :, None])
    hot = attention(heads=4, temperature={"kind": "log_steps", "beta": 0.5, "every": 4})
    plain, x = attention(heads=4), data()
    torch.testing.assert_close(hot(x, context())[:, :4], plain(x, context())[:, :4])
    assert not torch.allclose(hot(x, context())[:, 4:], plain(x, context())[:, 4:], atol=1e-4)


def test_dropout_only_in_training() -> None:
    block, x = attention(heads=4, dropout=0.5), data()
    assert torch.equal(block(x, context()), block(x, context()))
    block.train()
    torch.manual_seed(0)
    assert not torch.equal(block(x, context()), block(x, context()))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("mask", ["causal", "full"])
def test_a_document_never_sees_another(mask: str, window: int | None) -> None:
    """Change all of document 1: what comes out at document 2 is bit-equal, and so is its gradient."""
    block = attention(heads=4, mask=mask, window=window, rope={"kind": "rope"})
    documents = torch.tensor([[1, 1, 1, 2, 2, 2, 0]])
    first, second = data(batch=1), data(batch=1)
    second[:, :3] = data(batch=1, seed=9)[:, :3]
    outs, gradients = [], []
    for x in (first, second):
        x.requires_grad_(True)
        out = block(x, context(documents=documents))
        out[:, 3:6].square().sum().backward()
        outs.append(out)
        assert x.grad is not None
        gradients.append(x.grad)
    assert torch.equal(outs[0][:, 3:6], outs[1][:, 3:6])
    assert not torch.equal(outs[0][:, :3], outs[1][:, :3])
    assert torch.equal(gradients[0][:, 3:], gradients[1][:, 3:])
    assert not gradients[0][:, :3].any(), "a gradient leaked into document 1"
    assert not gradients[0][:, 6:].any(), "a gradient leaked into the padding"


def test_a_packed_document_equals_itself_alone() -> None:
    block, x = attention(heads=4, rope={"kind": "rope"}), data(batch=1)
    packed = block(x, context(documents=torch.tensor([[1, 1, 1, 2, 2, 2, 2]])))
    torch.testing.assert_close(packed[:, :3], block(x[:, :3], context(3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(packed[:, 3:], block(x[:, 3:], context(4)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mask", ["causal", "full"])
def test_padding_changes_nothing_and_makes_no_nan(side: str, mask: str) -> None:
    block, x = attention(heads=4, kv_heads=2, mask=mask, rope={"kind": "rope"}), data(5, 1)
    empty = torch.full((1, 2, DIM), 1e3)
    real = slice(2, 7) if side == "left" else slice(0, 5)
    padded = torch.cat((empty, x) if side == "left" else (x, empty), 1).requires_grad_(True)
    padding = torch.zeros(1, 7, dtype=torch.bool)
    padding[:, real] = True
    out = block(padded, context(padding=padding))
    torch.testing.assert_close(out[:, real], block(x, context(5)), rtol=1e-4, atol=1e-5)
    assert out.isfinite().all()
    out[:, real].sum().backward()
    assert padded.grad is not None
    assert padded.grad.isfinite().all()
    assert not padded.grad[:, ~padding[0]].any()


@pytest.mark.parametrize("steps", [[1] * 7, [3, 1, 3], [6, 1], [2, 5]])
@pytest.mark.parametrize("more", [{}, {"window": 3}, {"qk_norm": True}])
@pytest.mark.parametrize("padded", [False, True])
def test_with_a_cache_equals_without(steps: list[int], more: dict, padded: bool) -> None:
    block, x = attention(heads=4, kv_heads=2, rope={"kind": "rope"}, **more), data()
    padding = torch.ones(2, LENGTH, dtype=torch.bool)
    padding[1, :2] = not padded
    whole = block(x, context(padding=padding if padded else None))
    cache, parts, start = Cache(), [], 0
    for step in steps:
        end = start + step
        seen = padding[:, :end] if padded else None
        parts.append(block(x[:, start:end], Context(torch.arange(start, end)[None], seen, cache=cache)))
        cache.length = start = end
    got = torch.cat(parts, 1)
    real = padding if padded else torch.ones(2, LENGTH, dtype=torch.bool)
    torch.testing.assert_close(got[real], whole[real], rtol=1e-4, atol=1e-5)
    assert got.isfinite().all()


def test_a_cache_keeps_blocks_apart_and_can_be_reordered() -> None:
    first, second, x, cache = attention(heads=4), attention(heads=4), data(), Cache()
    for block in (first, second):
        block(x, context(cache=cache))
    assert len(cache.entries) == 2
    keys = cache.entries[id(first)][0]
    cache.reorder(torch.tensor([1, 1]))
    assert torch.equal(cache.entries[id(first)][0], keys[[1, 1]])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"heads": 4, "kv_heads": 3}, "heads=4 is not a multiple of kv_heads=3; kv_heads may be 1, 2, 4"),
        ({"heads": 4, "kv_heads": 8}, "heads=4 is not a multiple of kv_heads=8"),
        ({"heads": 5}, "dim=24 is not a multiple of heads=5; heads may be 1, 2, 3, 4, 6, 8, 12, or state head_dim"),
        ({"heads": 8, "rope": {"kind": "rope"}}, "head_dim=3 and fraction=1.0 turn 3 features"),
    ],
)
def test_shapes_that_cannot_be(fields: dict, said: str) -> None:
    with pytest.raises(SpecError, match=said.replace("(", r"\(")):
        attention(**fields)


def test_a_mixed_precision_pass_stays_close() -> None:
    block, x = attention(heads=4, kv_heads=2, rope={"kind": "rope"}, qk_norm=True), data()
    padding = torch.tensor([[True] * 7, [True] * 5 + [False] * 2])
    exact = block(x, context(padding=padding))
    with torch.autocast("cpu", torch.bfloat16):
        rough = block(x, context(padding=padding))
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)


def test_one_norm_over_all_heads_together() -> None:
    block, x = attention(heads=4, kv_heads=2, qk_norm="whole"), data()
    assert block.q_norm is not None
    assert block.k_norm is not None
    assert [block.q_norm.weight.shape, block.k_norm.weight.shape] == [(24,), (12,)]
    plain = attention(heads=4, kv_heads=2)
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if "norm" not in k})
    plain.q = torch.nn.Sequential(plain.q, block.q_norm)  # type: ignore[assignment]
    plain.k = torch.nn.Sequential(plain.k, block.k_norm)  # type: ignore[assignment]
    torch.testing.assert_close(block(x, context()), plain(x, context()))
