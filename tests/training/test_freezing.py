"""What is frozen stays, bit for bit, and the rest trains as it would."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_runs import LLAMA

from mlplatform.errors import SpecError
from mlplatform.models import build
from mlplatform.registry import merge
from mlplatform.training.freezing import freeze, matches

MIXTURE = {"kind": "moe", "experts": 4, "top_k": 2, "width": 16}
MIXTURE["router"] = {"kind": "sigmoid_router", "correction": True, "correction_rate": 0.1}


def trains(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        ([], lambda name: True),
        (["trunk.input"], lambda name: not name.startswith("trunk.input")),
        (["trunk.input*", "trunk.layers.0"], lambda name: name.startswith(("trunk.layers.1", "trunk.final", "head"))),
        (["*", "!head"], lambda name: name.startswith("head.")),
        (["*", "!*.bias", "!*norm"], lambda name: name.endswith("bias") or "norm" in name),
        (["*.attention.q.weight"], lambda name: "attention.q.weight" not in name),
        (["!head", "head"], lambda name: not name.startswith("head.")),  # the last one that names it says
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_patterns_name_parameters_and_modules(patterns: list[str], kept: object) -> None:
    model = build(merge(LLAMA, {"head": {"tied": False}, "trunk": {"layer": {"attention": {"bias": True}}}}))
    freeze(model, patterns)
    everything = {name for name, _ in model.named_parameters()}
    assert trains(model) == {name for name in everything if kept(name)}  # type: ignore[operator]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("trunk.inputs", r"freeze: 'trunk\.inputs' names no parameter of the model \(did you mean 'trunk\.input'\?\)"),
        ("!hat", r"'!hat' names no parameter"),
        ("vision.*", r"it has trunk, trunk\.input, trunk\.layers, trunk\.final_norm, head"),
    ],
)
def test_a_pattern_that_names_nothing_is_an_error(pattern: str, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        freeze(build(LLAMA, device="meta"), [pattern])


def test_a_name_is_matched_by_itself_and_by_what_it_is_in() -> None:
    assert matches("trunk.layers.11.mlp.up.weight", ["trunk.layers.11"])
    assert not matches("trunk.layers.11.mlp.up.weight", ["trunk.layers.1", "mlp"])


def test_statistics_and_corrections_of_what_is_frozen_stay() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    freeze(model, ["1"])
    before = [model[n].running_mean.clone() for n in (1, 2)]  # type: ignore[union-attr,operator]
    model.eval()
    model.train()
    model(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    assert model.training
    assert torch.equal(model[1].running_mean, before[0])  # type: ignore[arg-type]
    assert not torch.equal(model[2].running_mean, before[1])  # type: ignore[arg-type]
    for patterns in ([], ["*", "!trunk.input", "!*.router"], ["*.router"]):
        sparse = build(merge(LLAMA, {"trunk": {"layer": {"mlp": MIXTURE}}}), seed=0)
        freeze(sparse, patterns)
        corrections = {name: t.clone() for name, t in sparse.state_dict().items() if "correction" in name}
        sparse(input_ids=torch.arange(12)[None])
        for module in sparse.modules():
            if hasattr(module, "counts"):
                module.settle(lambda t: t)  # type: ignore[operator]
        same = [torch.equal(sparse.state_dict()[name], tensor) for name, tensor in corrections.items()]
        assert same == [patterns == ["*.router"]] * 2
        assert not any("correction" in name for name in trains(sparse))
