"""The Python face: compose and build by name, cheaply, with origins in errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mlplatform as mp
from mlplatform.errors import SpecError


def test_compose_returns_the_checked_spec() -> None:
    spec = mp.compose("llama_tiny", ["trunk.depth=2", "block/mlp@trunk.layer.mlp=mlp"])
    assert (spec.kind, spec["trunk"]["depth"]) == ("single_tower", 2)
    assert spec["trunk"]["layer"]["mlp"]["kind"] == "mlp"
    with pytest.raises(SpecError, match=r"trunk\.dept: .* \(did you mean 'depth'\?\).*command line: trunk\.dept=2"):
        mp.compose("llama_tiny", ["trunk.dept=2"])
    with pytest.raises(SpecError, match=r"no model 'lama_tiny' \(did you mean 'llama_tiny'\?\)"):
        mp.compose("lama_tiny")


def test_build_by_name_and_from_a_spec_are_the_same_model() -> None:
    named = mp.build("llama_tiny", ["trunk.depth=2"], seed=3)
    spec = mp.build(mp.compose("llama_tiny", ["trunk.depth=2"]), seed=3)
    plain = mp.build(mp.compose("llama_tiny", ["trunk.depth=2"]).data, seed=3)
    for other in (spec, plain):
        assert all(torch.equal(a, b) for a, b in zip(named.parameters(), other.parameters(), strict=True))
    assert not torch.equal(next(named.parameters()), next(mp.build("llama_tiny", seed=4).parameters()))


def test_build_on_meta_and_in_bf16() -> None:
    assert next(mp.build("llama", device="meta").parameters()).is_meta
    assert {p.dtype for p in mp.build("llama_tiny", dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_values_that_do_not_fit_each_other_name_where_each_stands() -> None:
    with pytest.raises(SpecError) as caught:
        mp.build("llama_tiny", ["trunk.layer.attention.kv_heads=5"], device="meta")
    text = str(caught.value)
    assert text.startswith("trunk.layer.attention: heads=")
    assert "is not a multiple of kv_heads=5; kv_heads may be 1, " in text
    assert "conf/model/llama_tiny.yaml:" in text
    assert "the command line: trunk.layer.attention.kv_heads=5" in text


def test_a_family_of_ones_own_is_a_yaml_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    text = "# Mine\ndefaults: [llama_tiny, _self_]\ntrunk: {depth: 1, layer: {attention: {qk_norm: true}}}\n"
    (tmp_path / "model" / "mine.yaml").write_text(text)
    model = mp.build("mine", config_dirs=[tmp_path])
    assert any("q_norm" in name for name, _ in model.named_parameters())


def test_unknown_names_of_the_package_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'biuld'"):
        mp.biuld  # noqa: B018


@pytest.mark.parametrize(
    "override",
    [
        "block/mlp@trunk.layer.mlp=moe",
        "block/mlp@trunk.layer.mlp=mlp",
        "block/norm@trunk.norm=layer_norm",
        "trunk.layer.attention.qk_norm=true",
        "trunk.layer.attention.window=64",
        "trunk.layer.kind=parallel",
    ],
)
def test_a_model_its_config_json_cannot_say_is_not_saved_as_another(override: str, tmp_path: Path) -> None:
    model = mp.build("llama_tiny", [override, "trunk.depth=1"])
    with pytest.raises(SpecError, match=r"trunk\..*: llama's config\.json has no word for it"):
        mp.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("llama_tiny", ["trunk.dim=96", "trunk.layer.dropout=0.1", "head=sequence_classification", "init.std=0.1"]),
        ("llama_tiny", ["heads.lm.tied=false", "trunk.layer.attention.bias=true"]),
        ("llama_tiny", ["block/rope_scaling@trunk.layer.attention.rope.scaling=yarn"]),
        ("gpt2", ["trunk.dim=96", "trunk.layer.mlp.width=64"]),
        ("bert", ["head=pooled", "trunk.layer.mlp.activation=relu"]),
    ],
)
def test_a_model_its_config_json_can_say_comes_back_bit_for_bit(
    name: str, overrides: list[str], tmp_path: Path
) -> None:
    model = mp.build(name, [*overrides, "trunk.depth=1"])
    mp.save(model, tmp_path / "out")
    again = mp.load(tmp_path / "out")
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
