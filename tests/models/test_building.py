"""Building: on meta, from a seed, without touching the global random state; tied weights; swapped blocks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mlplatform.cli.compose import compose_model
from mlplatform.errors import SpecError
from mlplatform.models import build
from mlplatform.registry import Spec

SPECS = {
    **{family: tiny.spec(family) for family in tiny.SMALL},
    "encoder_decoder": tiny.encoder_decoder(),
    "dual_tower": tiny.dual_tower(),
    "vision_language": tiny.vision_language(),
}


@pytest.mark.parametrize("name", list(SPECS))
def test_meta_has_the_same_names_shapes_and_no_memory(name: str) -> None:
    meta, real = build(SPECS[name], device="meta"), build(SPECS[name])
    assert all(p.is_meta for p in meta.parameters())
    assert {n: p.shape for n, p in meta.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    assert not list(meta.buffers()), "a buffer made on meta would hold nothing once it has memory"
    assert not any(p.is_meta for p in real.parameters())


@pytest.mark.parametrize("name", list(SPECS))
def test_a_seed_gives_the_same_bytes_and_leaves_the_global_state_alone(name: str) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = build(SPECS[name], seed=7).state_dict()
    torch.manual_seed(456)
    torch.rand(3)
    state = torch.get_rng_state()
    second = build(SPECS[name], seed=7).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    other = build(SPECS[name], seed=8).state_dict()
    assert not torch.equal(before, state)
    assert all(torch.equal(first[key], second[key]) for key in first)
    matrices = [key for key, value in first.items() if value.ndim > 1 and value.any()]
    assert matrices
    assert not any(torch.equal(first[key], other[key]) for key in matrices)


@pytest.mark.parametrize("name", list(SPECS))
def test_every_parameter_is_given_a_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is full of NaN before: what initialisation forgets is seen."""
    plain = nn.Module.to_empty

    def filled(self: nn.Module, **where: Any) -> nn.Module:
        module = plain(self, **where)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(float("nan"))
        return module

    monkeypatch.setattr(nn.Module, "to_empty", filled)
    for key, value in build(SPECS[name]).state_dict().items():
        assert value.isfinite().all(), key


@pytest.mark.parametrize("name", list(SPECS))
def test_layers_start_apart(name: str) -> None:
    """The textbook's mistake: one forgotten copy, and all layers share their weights."""
    model = build(SPECS[name])
    pointers = [p.data_ptr() for p in model.parameters()]
    assert len(set(pointers)) == len(pointers)
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    assert stacks
    for stack in stacks:
        first, second = stack[0].state_dict(), stack[1].state_dict()
        assert any(not torch.equal(first[key], second[key]) for key in first)


def test_normal_initialisation() -> None:
    spec = tiny.spec("gpt2", "trunk.dim=128", "trunk.depth=8", "trunk.input.vocab=500")
    model = build(spec)
    table = dict(model.named_parameters())
    assert table["trunk.input.table.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert table["trunk.layers.3.mlp.up.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    for shrunk in ("trunk.layers.3.mlp.down.weight", "trunk.layers.3.attention.out.weight"):
        assert table[shrunk].std().item() == pytest.approx(0.02 / math.sqrt(2 * 8), rel=0.05)
    assert all(not p.any() for n, p in table.items() if n.endswith("bias"))
    assert all((p == 1).all() for n, p in table.items() if n.endswith("norm.weight"))


def test_dtype_and_the_spec_it_was_built_from() -> None:
    spec = tiny.spec("llama")
    model = build(spec, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.spec == spec
    again = build(Spec.of(spec, "model"), dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_a_tied_weight_has_one_name_and_is_saved_once(tmp_path: Any) -> None:
    model = build(tiny.spec("gpt2"))
    names = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    assert "trunk.input.table.weight" in names
    assert not any(n.startswith("head") for n in names)
    save_file(model.state_dict(), tmp_path / "m.safetensors")  # refuses tensors that share memory
    other = build(tiny.spec("gpt2"), seed=1)
    other.load_state_dict(load_file(tmp_path / "m.safetensors"))
    tokens = torch.arange(6)[None]
    assert torch.equal(model.eval()(input_ids=tokens).logits, other.eval()(input_ids=tokens).logits)
    assert other.head.weights[0] is other.trunk.input.table.weight  # type: ignore[union-attr, operator]


def test_a_tied_weight_gets_both_gradients() -> None:
    model, tokens = tiny.model("gpt2"), torch.tensor([[1, 2, 3]])
    model(input_ids=tokens).logits.sum().backward()
    gradient = model.trunk.input.table.weight.grad  # type: ignore[union-attr]
    assert gradient[40].any(), "rows of tokens that were not read are moved by the head alone"  # type: ignore[index]


SWAPS = [
    "block/mlp@trunk.layer.mlp=mlp",
    "block/mlp@trunk.layer.mlp=moe",
    "block/norm@trunk.norm=layer_norm",
    "block/layer@trunk.layer=post_norm",
    "block/layer@trunk.layer=sandwich_norm",
    "block/layer@trunk.layer=output_norm",
    "block/layer@trunk.layer=parallel",
    "block/rope_scaling@trunk.layer.attention.rope.scaling=yarn",
    "block/rope_scaling@trunk.layer.attention.rope.scaling=dynamic",
    "block/rope_scaling@trunk.layer.attention.rope.scaling=llama3",
    "block/rope_scaling@trunk.layer.attention.rope.scaling=linear",
    "block/positions@trunk.input.positions=learned",
    "block/position_bias@trunk.position_bias=alibi",
    "block/position_bias@trunk.position_bias=relative_buckets",
    "block/head@head=token_classification",
    "~trunk.layer.attention.rope",
    "head=sequence_classification",
    "head=none",
]


@pytest.mark.parametrize("swap", SWAPS)
def test_a_swapped_block_runs_and_learns(swap: str) -> None:
    model = tiny.stirred(build(tiny.spec("llama", swap)))
    out = model(input_ids=torch.arange(12).view(2, 6))
    value = out.logits if "logits" in out else out.last_hidden_state
    assert value.isfinite().all()
    value.square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_exceptions_change_the_layers_they_name_alone() -> None:
    exceptions = (
        "trunk.exceptions=[{layers: '1::2', attention: {rope: null, window: 2}}, {layers: [-1], mlp: {width: 7}}]"
    )
    model = build(tiny.spec("llama", "trunk.depth=4", exceptions))
    layers = model.trunk.layers  # type: ignore[union-attr]
    assert [layer.attention.rope is None for layer in layers] == [False, True, False, True]  # type: ignore[union-attr]
    assert [layer.attention.window for layer in layers] == [None, (1, 0), None, (1, 0)]  # type: ignore[union-attr]
    assert [layer.mlp.up.out_features for layer in layers] == [48, 48, 48, 7]  # type: ignore[union-attr]
    assert model(input_ids=torch.arange(6)[None]).logits.shape == (1, 6, 50)


def test_an_exceptions_mistake_names_its_place() -> None:
    with pytest.raises(SpecError, match=r"trunk\.exceptions\.0\.mlp\.widht: .*did you mean 'width'"):
        compose_model("llama_tiny", ["trunk.exceptions=[{layers: [0], mlp: {widht: 7}}]"]).check()


def test_all_problems_before_anything_is_built() -> None:
    spec = tiny.spec("llama")
    spec["trunk"]["dim"] = -1
    spec["trunk"]["layer"]["mlp"]["activation"] = "sulu"
    with pytest.raises(SpecError) as caught:
        build(spec)
    assert len(caught.value.problems) == 2


def test_a_block_where_it_has_no_place() -> None:
    spec = tiny.spec("llama")
    spec["trunk"]["layer"]["attention"] = {"kind": "cross_attention", "heads": 4}
    with pytest.raises(SpecError, match=r"trunk\.layer\.attention: cross_attention can't stand here.*'memory_dim'"):
        build(spec)
