"""DoRA on maps that ranks divide: the outputs and gradients of the whole model, by peft's own forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_start import divided, spec_of, whole
from torch import nn
from training_runs import in_processes, ranks

from mlplatform.models import build
from mlplatform.registry import Spec

pytestmark = pytest.mark.distributed
IDS = torch.randint(5, 390, (2, 12), generator=torch.Generator().manual_seed(0))
FIELDS = {"rank": 3, "targets": ["*.attention", "*.mlp"], "dora": True}


def made(name: str, dropout: float) -> nn.Module:
    """Return a model whose adapters have left where they begin, and whose frozen biases are not zero."""
    model = build(spec_of(name), seed=3)
    Spec.of({"kind": "lora", "dropout": dropout, **FIELDS}, "adapter", "adapter").build().apply(model, seed=4)
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.requires_grad or key.endswith(".bias"):
                p += 0.1 * torch.randn(p.shape, generator=noise)
    return model.train()


def learned(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    out = model(input_ids=IDS, labels=IDS)
    out.loss.backward()
    return out.loss.detach(), {name: whole(p.grad) for name, p in model.named_parameters() if p.requires_grad}


def _compare() -> None:
    torch.distributed.init_process_group("gloo")
    for name in ("llama", "variety"):
        for dropout in (0.0, 1e-9):  # with dropout peft has the map read again what A reads; so rarely it drops nothing
            wanted, gradients = learned(made(name, dropout))
            found, own = learned(divided(made(name, dropout), "tp"))
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
            assert own.keys() == gradients.keys()
            for key, gradient in gradients.items():
                assert gradient.abs().max() > 0, key
                scale = float(gradient.abs().max())
                torch.testing.assert_close(own[key] / scale, gradient / scale, rtol=0, atol=1e-4, msg=key)


def test_outputs_and_gradients_are_those_of_the_whole_model() -> None:
    assert in_processes(_compare, [()] * 2, ranks(2)) == [0, 0]
