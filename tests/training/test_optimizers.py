"""Which parameters decay, which Muon takes, and that joined optimizers are the two of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from training_runs import BERT, LLAMA

from mlplatform.errors import SpecError
from mlplatform.models import build as build_model
from mlplatform.registry import Spec, merge
from mlplatform.training.optimizers import Joined, build, can_fuse

KINDS: list[dict[str, Any]] = [
    {"kind": "adamw"},
    {"kind": "muon"},
    {"kind": "adafactor"},
    {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
]


STILL = merge(LLAMA, {"trunk": {"layer": {"dropout": 0.0}}})


def make(spec: dict[str, Any], model: torch.nn.Module) -> torch.optim.Optimizer:
    return build(Spec.of(spec, "optimizer", "optimizer"), model)


def named(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    return {name: group for group in optimizer.param_groups for name in group["param_names"]}


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    ids = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(seed))
    model(input_ids=ids, labels=ids, logits=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("spec", KINDS)
@pytest.mark.parametrize("shape", [LLAMA, merge(BERT, {"trunk": {"norm": {"kind": "layer_norm"}}})])
def test_matrices_decay_and_norms_biases_and_tables_do_not(spec: dict[str, Any], shape: dict[str, Any]) -> None:
    if "kind" in spec:
        spec = {**spec, "weight_decay": 0.1}
    model = build_model(merge(shape, {"trunk": {"layer": {"attention": {"bias": True}}}}))
    groups = named(make(spec, model))
    assert groups.keys() == dict(model.named_parameters()).keys()
    for name, group in groups.items():
        still = "norm" in name or name.endswith("bias") or "table" in name
        assert group["weight_decay"] == (0.0 if still else 0.1), name
    assert sum(group["weight_decay"] == 0 for group in groups.values()) > 5


def test_decay_moves_a_matrix_without_gradient_and_no_norm() -> None:
    model = build_model(LLAMA)
    optimizer = make({"kind": "adamw", "lr": 0.1, "weight_decay": 0.5}, model)
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, tensor in model.state_dict().items():
        factor = 1.0 if "norm" in name or "table" in name else 1 - 0.1 * 0.5
        torch.testing.assert_close(tensor, before[name] * factor)


def test_muon_takes_the_hidden_matrices_only() -> None:
    groups = named(make({"kind": "muon", "adamw_lr": 1e-3}, build_model(merge(LLAMA, {"head": {"tied": False}}))))
    hidden = {name for name, group in groups.items() if "ns_steps" in group}
    assert hidden == {n for n in groups if "layers" in n and "norm" not in n}
    assert not {"head.out.weight", "trunk.input.table.weight"} & hidden
    assert {groups[name]["lr"] for name in hidden} == {3e-4}
    assert {groups[name]["lr"] for name in groups.keys() - hidden} == {1e-3}


def test_muon_by_path_pattern() -> None:
    groups = named(make({"kind": "muon", "matrices": ["*.mlp.*"]}, build_model(LLAMA)))
    assert all(("ns_steps" in group) == (".mlp." in name) for name, group in groups.items())
    with pytest.raises(SpecError, match=r"matrices=\['\*\.moe\.\*'\] fits no matrix.*trunk\.layers\.0\.attention\.q"):
        make({"kind": "muon", "matrices": ["*.moe.*"]}, build_model(LLAMA))


def test_joined_is_both_optimizers_side_by_side() -> None:
    joined, apart = build_model(STILL), build_model(STILL)
    optimizer = make({"kind": "muon", "lr": 0.01}, joined)
    assert isinstance(optimizer, Joined)
    rest = [(n, p) for n, p in apart.named_parameters() if "layers" not in n or "norm" in n]
    hidden = [p for n, p in apart.named_parameters() if "layers" in n and "norm" not in n]
    muon = torch.optim.Muon(hidden, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([p for _, p in rest], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for seed in range(3):
        step(joined, optimizer, seed)
        ids = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(seed))
        apart(input_ids=ids, labels=ids, logits=False).loss.backward()
        muon.step()
        adamw.step()
        apart.zero_grad()
    for one, other in zip(joined.parameters(), apart.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("spec", KINDS)
def test_state_goes_on_where_it_was(spec: dict[str, Any]) -> None:
    one = build_model(STILL)
    optimizer = make(spec, one)
    for seed in range(2):
        step(one, optimizer, seed)
    other = copy.deepcopy(one)
    restored = make(spec, other)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, running in ((one, optimizer), (other, restored)):
        for group in running.param_groups:
            group["lr"] = group["initial_lr"] * 0.5  # the parts of a joined optimizer must see it
        step(model, running, 7)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_fuses_where_it_can() -> None:
    model = build_model(LLAMA)
    assert all(group["fused"] for group in make({"kind": "adamw"}, model).param_groups)
    assert not can_fuse(p for p in build_model(LLAMA, device="meta").parameters())


def test_frozen_parameters_are_left_out() -> None:
    model = build_model(LLAMA)
    model.trunk.input.requires_grad_(False)  # type: ignore[union-attr,operator]
    assert "trunk.input.table.weight" not in named(make({"kind": "adamw"}, model))
    model.requires_grad_(False)
    with pytest.raises(SpecError, match="no parameter to train"):
        make({"kind": "adamw"}, model)


def test_a_target_refuses_unknown_arguments() -> None:
    with pytest.raises(SpecError, match=r"optimizer: torch\.optim\.SGD: .*nesterow"):
        make({"_target_": "torch.optim.SGD", "lr": 0.1, "nesterow": True}, build_model(LLAMA))
