"""A vocabulary divided among ranks: each holds its rows of table and head, and computes what one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from training_runs import in_processes, ranks

from mlplatform.blocks.losses import linear_cross_entropy_sum
from mlplatform.models import build
from mlplatform.training.sharding.layers import divide_layers

pytestmark = pytest.mark.distributed

VOCAB = 50


def spec(head: dict[str, Any], vocab: int = VOCAB) -> dict[str, Any]:
    attention = {"kind": "attention", "heads": 4, "rope": {"kind": "rope"}}
    return {
        "kind": "single_tower",
        "trunk": {
            "kind": "transformer",
            "dim": 16,
            "depth": 1,
            "context_length": 16,
            "norm": {"kind": "rms_norm"},
            "input": {"kind": "tokens", "vocab": vocab},
            "layer": {"kind": "pre_norm", "attention": attention, "mlp": {"kind": "gated_mlp", "width": 24}},
        },
        "head": {"kind": "lm_head", **head},
    }


HEADS: dict[str, dict[str, Any]] = {
    "tied": {"tied": True},
    "own": {"tied": False, "bias": True},
    "capped": {"tied": True, "softcap": 3.0},
}


def compare(folder: Path) -> None:
    """As one of two ranks, compare logits, loss and gradients of divided models with whole ones."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("parts",))
    tokens = torch.randint(0, VOCAB, (3, 12), generator=torch.Generator().manual_seed(4))
    labels = tokens.masked_fill(tokens % 5 == 0, -100)
    for name, head in HEADS.items():
        whole, divided = build(spec(head), seed=1), build(spec(head), seed=1)
        divide_layers(divided, mesh)
        held = {n: p for n, p in divided.named_parameters() if isinstance(p, DTensor)}
        rows = ["trunk.input.table.weight", *(["head.out.weight", "head.out.bias"] if name == "own" else [])]
        assert all(held[n].to_local().shape[0] == VOCAB // 2 for n in rows), name
        outs = [model(input_ids=tokens, labels=labels) for model in (whole, divided)]
        torch.testing.assert_close(outs[1].logits, outs[0].logits, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(outs[1].loss_sum, outs[0].loss_sum, rtol=1e-6, atol=0)
        for out in outs:  # through the logits too, as distillation and preferences learn
            (out.loss_sum + out.logits.square().sum()).backward()
        for n, p in whole.named_parameters():
            other: Any = dict(divided.named_parameters())[n].grad
            found = other.full_tensor() if isinstance(other, DTensor) else other
            torch.testing.assert_close(found, p.grad, rtol=1e-4, atol=1e-5, msg=f"{name} {n}")
    odd = build(spec({"tied": True}, vocab=51), seed=1)
    divide_layers(odd, mesh)
    assert not isinstance(odd.trunk.input.table.weight, DTensor)  # type: ignore[union-attr]
    assert odd(input_ids=tokens).logits.shape[-1] == 51
    (folder / f"{dist.get_rank()}").touch()
    dist.destroy_process_group()


def test_ranks_divide_tables_and_heads(tmp_path: Path) -> None:
    assert in_processes(compare, [(tmp_path,)] * 2, ranks(2)) == [0, 0]
    assert len(list(tmp_path.iterdir())) == 2


class Halves:
    """Stands in the place of the other rank's collectives: what this one would get of both halves together."""

    def __init__(self, first: int, other: list[torch.Tensor]) -> None:
        self.first, self.other = first, other

    def largest(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.maximum(tensor, self.other.pop(0))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + self.other.pop(0)


def test_scores_of_thousands_do_not_overflow() -> None:
    """A class of one rank that outweighs all of the other by more than fp32's exponents."""
    hidden = torch.tensor([[30.0, 0.0], [0.0, 30.0]], requires_grad=True)
    weight = torch.tensor([[30.0, 0.0], [0.0, 1.0], [-30.0, 0.0], [0.0, -1.0]])
    labels = torch.tensor([0, 1])
    expected = F.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    scores = hidden.detach() @ weight[2:].t()
    top = (hidden.detach() @ weight.t()).amax(-1, keepdim=True)
    total = (scores - top).exp().sum(-1, keepdim=True)
    there = [scores.amax(-1, keepdim=True), torch.cat((total, torch.zeros_like(total)), -1), torch.zeros(2, 2)]
    found, count = linear_cross_entropy_sum(hidden, weight[:2].clone(), None, labels, Halves(0, there))
    torch.testing.assert_close(found, expected)
    assert found.isfinite()
    assert count == 2
