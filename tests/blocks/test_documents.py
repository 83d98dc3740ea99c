"""Attention document by document against the mask of the whole row, in fp64: values, gradients, and when it applies."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from varlen_on_cpu import kernels_on_cpu

from mlplatform.blocks import attention as attentions
from mlplatform.blocks import documents
from mlplatform.blocks.attention import Attention
from mlplatform.context import Cache, Context
from mlplatform.registry import Spec

DIM, LENGTH = 48, 40
NORM = Spec.of({"kind": "rms_norm"}, "norm")


@pytest.fixture(autouse=True)
def short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the rows of these tests as long ones."""
    monkeypatch.setattr(documents, "LONG", 1)


def ids(*rows: list[int]) -> Tensor:
    """Return documents of these lengths, numbered from 1, with padding up to the end."""
    numbered = [[n + 1 for n, size in enumerate(row) for _ in range(size)] for row in rows]
    return torch.tensor([row + [0] * (LENGTH - len(row)) for row in numbered])


ROWS = ids([17, 1, 9, 13], [40], [3, 30], [1, 1, 38])


def attention(**fields: Any) -> Attention:
    spec = Spec.of({"kind": "attention", "heads": 4, **fields}, "attention")
    block: Any = tiny.stirred(spec.build(dim=DIM, tower_norm=NORM, context_length=64))
    return block.double()


def context(packed: Tensor = ROWS, **given: Any) -> Context:
    return Context(torch.arange(packed.shape[1])[None], documents=packed, **given)


def results(block: Attention, packed: Context, x: Tensor) -> list[Tensor]:
    """Return what comes out at the tokens, and the gradients of the input and of all weights."""
    x = x.clone().requires_grad_()
    assert packed.documents is not None
    out = block(x, packed)[packed.documents > 0]
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), [x, *block.parameters()])]


def data(seed: int = 0) -> Tensor:
    return torch.randn(len(ROWS), LENGTH, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masked(block: Attention, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return the results with one mask of the whole row."""
    with monkeypatch.context() as patch:
        patch.setattr(attentions, "documents_apart", lambda *_: None)
        return results(block, context(), x)


def equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


FIELDS = [
    {},
    {"kv_heads": 2},
    {"kv_heads": 1, "scale": 0.3},
    {"qk_norm": True, "rope": {"kind": "rope"}},
    {"gate": True, "bias": True},
]


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("window", [None, 1, 6, 39])
def test_equals_the_mask(
    fields: dict[str, Any], mask: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, x, packed = attention(mask=mask, window=window, **fields), data(), context()
    equal(results(block, packed, x), masked(block, x, monkeypatch))
    assert {key[0] for key in packed.memo} <= {"documents", "rope"}, "no mask of the row was made"


def test_equals_each_document_alone() -> None:
    block, x = attention(kv_heads=2, window=6), data()
    out = block(x, context())
    for row, numbers in enumerate(ROWS):
        for number in range(1, int(numbers.max()) + 1):
            places = numbers == number
            alone = Context(torch.arange(int(places.sum()))[None])
            torch.testing.assert_close(out[row][places][None], block(x[row : row + 1, places], alone))


def test_low_precision_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms write fp32 there: attention computes in the type of the values, as SDPA does."""
    block, x = attention(qk_norm=True, kv_heads=2).float(), data().float()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = results(block, context(), x), masked(block, x, monkeypatch)
    assert found[0].dtype == expected[0].dtype == torch.bfloat16
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05 * float(other.abs().max()))


def test_documents_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []
    find = documents._found
    monkeypatch.setattr(documents, "_found", lambda *given: calls.append(given[0]) or find(*given))
    packed = context()
    for fields in FIELDS:
        attention(**fields)(data(), packed)
    assert len(calls) == 1
    found = documents.documents_apart(packed, torch.empty(len(ROWS), 4, LENGTH, 12, dtype=torch.float64))
    assert found is not None
    assert found.lengths == [17, 1, 9, 13, 40, 3, 30, 7, 1, 1, 38]
    assert found.ends.tolist() == [0, 17, 18, 27, 40, 80, 83, 113, 120, 121, 122, 160]
    assert (found.longest, found.ends.dtype, found.kernel) == (40, torch.int32, False)


@pytest.mark.parametrize(
    ("row", "apart"),
    [
        ([1, 1, 2, 3, 3, 0], True),
        ([0, 0, 4, 4, 9, 9], True),  # numbers may be left out, and padding may be anywhere
        ([1, 1, 0, 2, 2, 2], True),
        ([0, 0, 0, 0, 0, 0], True),
        ([1, 2, 1, 1, 2, 2], False),  # the second 1 sees the first
        ([1, 0, 1, 1, 2, 2], False),
        ([2, 2, 1, 1, 1, 1], False),
    ],
)
def test_documents_lie_in_order_or_the_mask_stays(row: list[int], apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, x, block = torch.tensor([row]), data()[:1, :6], attention()
    found = documents.documents_apart(context(packed), torch.empty(1, 4, 6, 12))
    assert (found is not None) == apart
    got = block(x, context(packed))
    monkeypatch.setattr(attentions, "documents_apart", lambda *_: None)
    real = packed > 0
    torch.testing.assert_close(got[real], block(x, context(packed))[real])
    assert got.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"softcap": 5.0}, {}),
        ({"dropout": 0.5}, {}),
        ({}, {"bias": torch.zeros(1, 4, LENGTH, LENGTH)}),
        ({}, {"padding": ROWS > 0}),
        ({}, {"cache": Cache()}),
    ],
)
def test_where_it_does_not_apply(fields: dict[str, Any], given: dict[str, Any]) -> None:
    packed, block = context(**given), attention(**fields).train()
    block(data(), packed)
    assert {key[0] for key in packed.memo} <= {"mask"}  # softcap and dropout take one too
    assert packed.memo


@pytest.mark.parametrize(("length", "apart"), [(511, False), (512, True)])
def test_in_short_rows_a_mask_is_no_slower(length: int, apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    numbers = (torch.arange(length)[None] // 100) + 1
    assert (documents.documents_apart(context(numbers), torch.empty(1, 4, length, 12)) is not None) == apart


def test_without_training_there_is_no_dropout() -> None:
    packed = context()
    attention(dropout=0.5).eval()(data(), packed)
    assert {key[0] for key in packed.memo} == {"documents"}


def test_what_the_kernel_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    able = (8, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: able)
    with FakeTensorMode():

        def takes(size: int, dtype: torch.dtype, device: str = "cuda") -> bool:
            return documents.kernel_takes(torch.empty(2, 4, 8, size, dtype=dtype, device=device))

        assert [size for size in range(8, 300, 4) if takes(size, torch.bfloat16)] == [*range(8, 193, 8), 256]
        assert takes(64, torch.float16)
        assert not takes(64, torch.float32)
        assert not takes(64, torch.bfloat16, "cpu")
        able = (7, 5)
        assert not takes(64, torch.bfloat16)


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("window", [None, 6, 39])
def test_what_the_kernel_is_asked_for(
    fields: dict[str, Any], mask: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels_on_cpu(monkeypatch)
    block, x, packed = attention(mask=mask, window=window, **fields), data(), context()
    equal(results(block, packed, x), masked(block, x, monkeypatch))
    assert {key[0] for key in packed.memo} <= {"documents", "rope"}
    (found,) = (value for key, value in packed.memo.items() if key[0] == "documents")
    assert found.kernel
    assert found.alone.memo == {}, "the kernel needs no mask"


@pytest.mark.compiled
@pytest.mark.parametrize("kernel", [False, True])
def test_other_documents_are_not_compiled_again(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    if kernel:
        kernels_on_cpu(monkeypatch)
    torch._dynamo.reset()
    counter, draw = CompileCounterWithBackend("aot_eager"), torch.Generator().manual_seed(0)
    plain, compiled = (tiny.model("llama").double().train() for _ in range(2))
    for layer in compiled.trunk.layers:  # type: ignore[union-attr]
        layer.compile(backend=counter)
    counts: list[int] = []
    for number in range(8):
        sizes = torch.randint(3, 12, (2, number % 3 + 2), generator=draw).tolist()
        packed, losses = ids(*sizes), []
        tokens = torch.randint(0, 50, packed.shape, generator=draw)
        for model in (plain, compiled):
            losses.append(model(input_ids=tokens, labels=tokens, document_ids=packed, logits=False).loss)
            losses[-1].backward()
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=0)
        counts.append(counter.frame_count)
    for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-10)
    assert counts[-1] == counts[3], counts  # three to learn that numbers of documents vary
