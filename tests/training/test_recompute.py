"""What recomputation keeps in memory, and what it computes again."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import LLAMA
from varlen_on_cpu import kernels_on_cpu

from mlplatform.blocks import documents
from mlplatform.errors import SpecError
from mlplatform.models import build
from mlplatform.registry import Spec, merge
from mlplatform.training.engine import prepare_layers

TOWER = {"dim": 64, "depth": 4, "layer": {"dropout": 0.0, "attention": {"kv_heads": 2}, "mlp": {"width": 192}}}


class Counted(TorchDispatchMode):
    """Counts the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def prepared(again: Any, **more: Any) -> Any:
    model = build(merge(LLAMA, {"trunk": TOWER}), seed=1).train()
    fields = {"kind": "trainer", "max": "1 steps", "activation_checkpointing": again, **more}
    prepare_layers(model, Spec.of(fields, "trainer", "trainer").build())
    return model


def measured(again: Any) -> tuple[int, Counter[str], list[torch.Tensor]]:
    """Return the bytes a forward pass leaves alive, the operations of the backward pass, and the gradients."""
    model = prepared(again)
    ids = torch.randint(0, 300, (8, 64), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids, logits=False).loss.backward()  # what is made once is made now
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss = model(input_ids=ids, labels=ids, logits=False).loss
    alive = sum(e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")  # type: ignore
    with Counted() as counted:
        loss.backward()
    return alive, counted.calls, [p.grad for p in model.parameters() if p.grad is not None]


def test_selective_keeps_products_and_computes_the_rest_again() -> None:
    found = {str(again): measured(again) for again in (None, "selective", "full")}
    bytes_of = {name: alive for name, (alive, _, _) in found.items()}
    assert bytes_of["full"] < 0.35 * bytes_of["None"]
    assert bytes_of["full"] < bytes_of["selective"] < 0.75 * bytes_of["None"], bytes_of
    calls = {name: counted for name, (_, counted, _) in found.items()}
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert calls["selective"]["mm"] == calls["None"]["mm"] < calls["full"]["mm"]
    assert calls["selective"][attention] == calls["None"][attention] == 0 < calls["full"][attention]
    assert calls["selective"]["silu"] == calls["full"]["silu"] == 4
    for _, _, gradients in found.values():
        assert all(torch.equal(one, other) for one, other in zip(gradients, found["None"][2], strict=True))


@pytest.mark.parametrize("kernel", [False, True])
def test_packed_documents_are_found_once_and_attention_kept(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "LONG", 1)
    if kernel:
        kernels_on_cpu(monkeypatch)
    operation = "_varlen_attn" if kernel else "_scaled_dot_product_flash_attention_for_cpu"
    ids = torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(0))
    packed = torch.tensor([[1] * 9 + [2] * 23, [1] * 4 + [2] * 5 + [3] * 17 + [0] * 6])
    gradients = {}
    for again in (None, "selective", "full"):
        model = prepared(again)
        loss = model(input_ids=ids, labels=ids, document_ids=packed, logits=False).loss
        with Counted() as counted:
            loss.backward()
        attentions = 4 if kernel else 4 * 6
        assert counted.calls[operation] == (attentions if again == "full" else 0)
        assert not counted.calls["cummax"], "documents were looked for again"
        gradients[again] = [p.grad for p in model.parameters()]
    for found in gradients.values():
        assert all(torch.equal(one, other) for one, other in zip(found, gradients[None], strict=True))


def test_a_compiler_chooses_by_itself() -> None:
    with pytest.raises(SpecError, match=r"activation_checkpointing: torch.compile chooses by itself .* or to full"):
        prepared("selective", compile=True)
