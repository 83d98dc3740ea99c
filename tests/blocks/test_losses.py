"""The chunked cross-entropy against torch's, in value, gradients and under autocast; it never holds all logits."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlplatform.blocks import losses
from mlplatform.blocks.losses import cross_entropy_sum, linear_cross_entropy_sum

ROWS, DIM, CLASSES = 50, 16, 37


def data(
    bias: bool, dtype: torch.dtype = torch.float32, ignored: float = 0.3
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, DIM, generator=generator).to(dtype).requires_grad_(True)
    weight = torch.randn(CLASSES, DIM, generator=generator).to(dtype).requires_grad_(True)
    added = torch.randn(CLASSES, generator=generator).to(dtype).requires_grad_(True) if bias else None
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    labels[torch.rand(ROWS, generator=generator) < ignored] = -100
    return hidden, weight, added, labels


def gradients(loss: Tensor, parts: list[Tensor | None]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [part for part in parts if part is not None]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 7, 1000])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_equals_torch_in_value_and_gradient(
    bias: bool, chunk_rows: int, ignored: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * CLASSES * chunk_rows)
    hidden, weight, added, labels = data(bias, ignored=ignored)
    total, count = linear_cross_entropy_sum(hidden, weight, added, labels)
    want = F.cross_entropy(F.linear(hidden, weight, added), labels, reduction="sum")
    assert total.dtype == torch.float32
    assert count.item() == (labels != -100).sum().item()
    assert not count.is_floating_point()
    torch.testing.assert_close(total, want, rtol=1e-6, atol=1e-4)
    # scaled, so that the gradient that comes in is not one
    for ours, theirs in zip(
        gradients(total * 0.37, [hidden, weight, added]), gradients(want * 0.37, [hidden, weight, added]), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk_rows", [7, 1000])
def test_under_bf16_autocast_as_torch_does_it(bias: bool, chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * CLASSES * chunk_rows)
    hidden, weight, added, labels = data(bias)
    exact = F.cross_entropy(F.linear(hidden, weight, added), labels, reduction="sum")
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = linear_cross_entropy_sum(hidden, weight, added, labels)
        theirs = F.cross_entropy(F.linear(hidden, weight, added), labels, reduction="sum")
    assert total.dtype == torch.float32
    assert abs(total - exact) <= max(abs(theirs - exact), 2e-3 * exact)
    parts = [hidden, weight, added]
    for ours, torchs, true in zip(
        gradients(total, parts), gradients(theirs, parts), gradients(exact, parts), strict=True
    ):
        assert ours.dtype == torch.float32
        error = (ours - true).norm() / true.norm()
        assert error <= max(1.2 * (torchs - true).norm() / true.norm(), torch.tensor(5e-3))


def test_bf16_parameters_sum_their_gradient_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """600 equal parts: a sum in bf16 would stand still at the 256th."""
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * CLASSES)
    hidden = torch.ones(600, DIM, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(CLASSES, DIM, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(CLASSES, dtype=torch.bfloat16, requires_grad=True)
    total, _ = linear_cross_entropy_sum(hidden, weight, bias, torch.zeros(600, dtype=torch.long))
    d_weight, d_bias = gradients(total, [weight, bias])
    assert d_weight.dtype == d_bias.dtype == torch.bfloat16
    torch.testing.assert_close(d_weight[1:].float(), torch.full((CLASSES - 1, DIM), 600 / CLASSES), rtol=0.01, atol=0)
    torch.testing.assert_close(d_bias[1:].float(), torch.full((CLASSES - 1,), 600 / CLASSES), rtol=0.01, atol=0)


@pytest.mark.parametrize("chunk_rows", [7, 1000])
def test_bf16_parameters_have_the_gradients_of_fp32_ones(chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * CLASSES * chunk_rows)
    hidden, weight, added, labels = data(True, torch.bfloat16)
    got = gradients(linear_cross_entropy_sum(hidden, weight, added, labels)[0], [hidden, weight, added])
    upcast = [part.detach().float().requires_grad_(True) for part in (hidden, weight, added) if part is not None]
    want = gradients(F.cross_entropy(F.linear(*upcast), labels, reduction="sum"), upcast)  # type: ignore[arg-type]
    for ours, true in zip(got, want, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - true).norm() / true.norm() < 0.01


def test_no_target_is_a_sum_of_zero_with_gradients_of_zero() -> None:
    hidden, weight, added, labels = data(True)
    total, count = linear_cross_entropy_sum(hidden, weight, added, torch.full_like(labels, -100))
    assert (total.item(), count.item()) == (0.0, 0)
    assert all(not gradient.any() for gradient in gradients(total, [hidden, weight, added]))
    total, count = cross_entropy_sum(hidden, torch.full_like(labels, -100))
    assert (total.item(), count.item()) == (0.0, 0)


def test_without_gradients_nothing_is_kept_for_them() -> None:
    hidden, weight, added, labels = data(True)
    with torch.no_grad():
        total, _ = linear_cross_entropy_sum(hidden, weight, added, labels)
    want = F.cross_entropy(F.linear(hidden, weight, added), labels, reduction="sum")
    assert not total.requires_grad
    torch.testing.assert_close(total, want.detach(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("frozen", ["weight", "hidden"])
def test_a_frozen_side_gets_no_gradient(frozen: str) -> None:
    hidden, weight, _, labels = data(False)
    (weight if frozen == "weight" else hidden).requires_grad_(False)
    total, _ = linear_cross_entropy_sum(hidden, weight, None, labels)
    total.backward()
    assert (weight.grad is None) == (frozen == "weight")
    assert (hidden.grad is None) == (frozen == "hidden")


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, _, labels = data(False)
    total, _ = linear_cross_entropy_sum(hidden * 1e4, weight, None, labels)
    want = F.cross_entropy(F.linear(hidden * 1e4, weight), labels, reduction="sum")
    torch.testing.assert_close(total, want, rtol=1e-5, atol=1.0)


def test_cross_entropy_sum_is_in_fp32_over_any_shape() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, -100, 4], [1, 2, -100]])
    total, count = cross_entropy_sum(logits.bfloat16(), labels)
    chosen = labels != -100
    picked = logits.bfloat16().double().log_softmax(-1)[chosen].gather(-1, labels[chosen][:, None])
    assert total.dtype == torch.float32
    assert count.item() == 4
    torch.testing.assert_close(total.double(), -picked.sum(), rtol=1e-6, atol=1e-6)


class Peak(TorchDispatchMode):
    """Counts the bytes of all storages alive at once, of those made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self.seen:
                self.seen.add(storage)
                self.now += (size := storage.nbytes())
                weakref.finalize(storage, self._freed, size)
        self.peak = max(self.peak, self.now)
        return out

    def _freed(self, size: int) -> None:
        self.now -= size


def test_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, dim, classes = 2048, 32, 8000
    monkeypatch.setattr(losses, "CHUNK_BYTES", 2**20)
    hidden = torch.randn(rows, dim, requires_grad=True)
    weight = torch.randn(classes, dim, requires_grad=True)
    labels = torch.randint(classes, (rows,))
    full = 4 * rows * classes
    with Peak() as plain:
        F.cross_entropy(F.linear(hidden, weight), labels, reduction="sum").backward()
    assert plain.peak > 1.9 * full, "the measure itself: logits and their gradient"
    hidden.grad = weight.grad = None
    with Peak() as ours:
        linear_cross_entropy_sum(hidden, weight, None, labels)[0].backward()
    gradients = 2 * 4 * (rows + classes) * dim  # kept from the forward pass, and scaled in the backward pass
    assert ours.peak < gradients + 4 * 2**20
    assert ours.peak < full / 8
