"""Composition: Hydra's grammar and order, our merging, swaps, folders of one's own, and every value's origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from mlplatform import places
from mlplatform.cli.compose import Composed, compose, compose_model
from mlplatform.cli.library import Library
from mlplatform.errors import SpecError
from mlplatform.registry import kinds, validate

FAMILY = """\
# Mine: a Llama with a norm on queries and keys
defaults: [llama_tiny, _self_]
trunk:
  depth: 3
  layer: {attention: {qk_norm: true}}
hf: {model_type: mine}
"""


def model(*overrides: str, **given: Any) -> Composed:
    return compose_model("llama_tiny", overrides, **given)


def places_of(composed: Composed, path: str) -> list[str]:
    return [origin.place for origin in composed.origins[path]]


SWAPPED = {"detr_tiny", "hubert_tiny", "wav2vec2_tiny"}
"""Models that put a block of another kind in the place of their family's, which replaces it whole."""


@pytest.mark.parametrize("option", sorted({*Library().options("model")} - SWAPPED))
def test_equals_hydra_where_hydra_can_say_it(option: str) -> None:
    """Without a change of kind our merging is Hydra's."""
    overrides = [f"model={option}", "++model.trunk.depth=3", "++seed=5", "+model.extra={a: [1, x], b: null}"]
    overrides += ["++model.trunk={dim: 128}", "++model.trunk.input.vocab=64", "~model.hf"]
    with initialize_config_dir(str(places.conf()), version_base="1.3"):
        theirs = hydra_compose("train", overrides)
    ours = compose("train", overrides)
    assert ours.raw == OmegaConf.to_container(theirs)
    assert ours.config["optimizer"] == OmegaConf.to_container(theirs.optimizer, resolve=True)


def test_values_of_the_command_line() -> None:
    composed = compose(
        overrides=[
            "++a.text=600 steps", "++a.quoted='1,2'", "++a.many=[1,x,{b: 2}]", "++a.none=null", "++a.real=1e-3",
            "++a.share=2%", "++a.cast=str(3)", "++a.tokens=2B tokens", "++a.empty=",
        ]
    )  # fmt: skip
    assert composed.config["a"] == {
        "text": "600 steps", "quoted": "1,2", "many": [1, "x", {"b": 2}], "none": None, "real": 1e-3,
        "share": "2%", "cast": "3", "tokens": "2B tokens", "empty": "",
    }  # fmt: skip


def test_origins_name_file_line_and_token() -> None:
    composed = model("trunk.depth=2")
    text = (places.conf() / "model" / "llama_tiny.yaml").read_text().splitlines()
    line = next(i for i, words in enumerate(text, 1) if words.strip().startswith("depth:"))
    assert places_of(composed, "trunk.depth")[1:] == [
        f"conf/model/llama_tiny.yaml:{line}",
        "the command line: trunk.depth=2",
    ]
    assert [o.value for o in composed.origins["trunk.depth"]][-1] == 2
    assert composed.config["trunk"]["depth"] == 2


def test_every_leaf_has_an_origin_and_none_is_left_over() -> None:
    composed = model("block/mlp@trunk.layer.mlp=moe", "~trunk.layer.attention.rope")

    def leaves(node: Any, path: str) -> dict[str, Any]:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        below = {k: v for key, value in items for k, v in leaves(value, f"{path}.{key}" if path else key).items()}
        return below or {path: node}

    found = leaves(composed.raw, "")
    assert {path: composed.origins[path][-1].value for path in found} == found
    assert "trunk.layer.mlp.activation" not in composed.origins
    assert "trunk.layer.attention.rope.theta" not in composed.origins


def test_swap_replaces_the_old_block() -> None:
    composed = model("trunk.layer.mlp.experts=4", "block/mlp@trunk.layer.mlp=moe")
    option = Library().need("block/mlp", "moe").data
    assert composed.check().config["trunk"]["layer"]["mlp"] == {**option, "experts": 4}
    assert places_of(composed, "trunk.layer.mlp.width")[-1].startswith("conf/block/mlp/moe.yaml:")


def test_swap_in_a_whole_run_and_into_an_empty_slot() -> None:
    composed = compose(overrides=["model=llama", "block/rope_scaling@model.trunk.layer.attention.rope.scaling=yarn"])
    assert composed.config["model"]["trunk"]["layer"]["attention"]["rope"]["scaling"]["kind"] == "yarn"


def test_swap_in_a_yaml_is_overridden_by_a_swap_on_the_command_line(tmp_path: Path) -> None:
    defaults = "defaults:\n  - llama_tiny\n  - /block/mlp@trunk.layer.mlp: moe\n  - _self_\n"
    write(tmp_path, "model/sparse.yaml", f"{defaults}trunk: {{layer: {{mlp: {{top_k: 1}}}}}}\n")
    composed = compose(overrides=["model=sparse"], config_dirs=[tmp_path])
    mlp = composed.config["model"]["trunk"]["layer"]["mlp"]
    assert (mlp["kind"], mlp["top_k"], "activation" in mlp) == (
        "moe",
        1,
        "activation" in Library().need("block/mlp", "moe").data,
    )
    swapped = compose(overrides=["model=sparse", "block/mlp@model.trunk.layer.mlp=mlp"], config_dirs=[tmp_path])
    assert swapped.config["model"]["trunk"]["layer"]["mlp"]["kind"] == "mlp"


def test_option_that_inherits_an_option_swaps_as_one(tmp_path: Path) -> None:
    write(tmp_path, "block/mlp/wide.yaml", "# Twice as wide\ndefaults: [gated_mlp, _self_]\nwidth: 1376\n")
    composed = model("block/mlp@trunk.layer.mlp=wide", config_dirs=[tmp_path])
    assert composed.check().config["trunk"]["layer"]["mlp"] == {"kind": "gated_mlp", "width": 1376}


def test_a_yaml_that_states_another_kind_replaces(tmp_path: Path) -> None:
    write(tmp_path, "model/plain.yaml", "defaults: [llama_tiny, _self_]\ntrunk: {layer: {mlp: {kind: mlp}}}\n")
    composed = compose_model("plain", config_dirs=[tmp_path])
    assert composed.check().config["trunk"]["layer"]["mlp"] == {"kind": "mlp"}


def test_a_kind_changed_in_place_names_what_is_left_over() -> None:
    with pytest.raises(SpecError) as caught:
        model("trunk.layer.mlp.kind=moe", "trunk.layer.attention.kind=cross_attention").check()
    lines = str(caught.value).splitlines()
    stale = next(line for line in lines if line.startswith("trunk.layer.attention.rope:"))
    assert "left over from 'attention'" in stale
    assert "block/attention@trunk.layer.attention=cross_attention" in stale
    assert "~trunk.layer.attention.rope" in stale
    assert any(
        line.startswith("trunk.layer.mlp.experts: moe needs 'experts'") and "block/mlp@" in line for line in lines
    )


def test_a_family_of_ones_own(tmp_path: Path) -> None:
    write(tmp_path, "model/mine.yaml", FAMILY)
    composed = compose_model("mine", ["trunk.dim=128"], config_dirs=[tmp_path]).check()
    assert (composed.config["trunk"]["depth"], composed.config["hf"]["model_type"]) == (3, "mine")
    assert places_of(composed, "trunk.depth")[-1] == f"{tmp_path}/model/mine.yaml:4"
    assert compose(overrides=["model=mine"], config_dirs=[tmp_path]).config["model"]["trunk"]["depth"] == 3


def test_ones_own_option_comes_before_a_shipped_one_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, "model/gpt2.yaml", FAMILY)
    assert compose_model("gpt2", config_dirs=[tmp_path]).config["trunk"]["depth"] == 3
    assert compose_model("llama", config_dirs=[tmp_path]).config["trunk"]["depth"] == 32


def test_recipes_override_choices_and_the_command_line_overrides_recipes(tmp_path: Path) -> None:
    recipe = "# @package _global_\ndefaults:\n  - override /model: gpt2\nseed: 7\nmodel: {trunk: {depth: 3}}\n"
    write(tmp_path, "recipes/mine.yaml", recipe)
    composed = compose(overrides=["recipes=mine"], config_dirs=[tmp_path])
    assert (composed.choices["model"], composed.config["seed"]) == ("gpt2", 7)
    assert composed.config["model"]["trunk"]["depth"] == 3
    composed = compose(overrides=["recipes=mine", "seed=8", "model=llama_tiny"], config_dirs=[tmp_path])
    assert (composed.choices["model"], composed.config["seed"]) == ("llama_tiny", 8)


def test_slots_of_an_assembly_are_chosen_by_name(tmp_path: Path) -> None:
    pair = "# Two towers\ndefaults:\n  - /model@text: bert\n  - /model@vision: gpt2\n  - _self_\nkind: dual_tower\n"
    write(tmp_path, "model/pair.yaml", pair)
    composed = compose(overrides=["model=pair", "model@model.text=llama_tiny"], config_dirs=[tmp_path])
    tiny = compose_model("llama_tiny").config
    assert composed.config["model"]["text"] == tiny  # nothing of bert is left
    assert composed.config["model"]["vision"]["trunk"]["context_length"] == 1024


def test_values_of_the_environment_are_known_and_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hush-hush")
    composed = compose(
        overrides=["++a.key=${oc.env:SOME_TOKEN}", "++a.url=https://x/${a.key}", "++b=${a}", "++c=${seed}"]
    )
    assert composed.config["a"] == {"key": "hush-hush", "url": "https://x/hush-hush"}
    assert composed.from_environment == {"a.key", "a.url", "b", "b.key", "b.url"}
    assert "hush" not in repr(composed.masked())
    assert composed.masked()["a"]["key"] == "${oc.env:SOME_TOKEN}"
    assert composed.masked()["c"] == composed.config["seed"]
    with pytest.raises(SpecError) as caught:
        model("trunk.depth=${oc.env:SOME_TOKEN}").check()
    assert "hush" not in str(caught.value)
    assert "${oc.env:SOME_TOKEN}" in str(caught.value)


def test_nothing_is_instantiated_or_imported(tmp_path: Path) -> None:
    """A `_target_` anywhere is data: composing runs nothing, checking refuses it."""
    witness = tmp_path / "witness"
    write(tmp_path, "model/evil.yaml", f"kind: single_tower\ntrunk: {{_target_: os.mkdir, path: {witness}}}\n")
    composed = compose_model("evil", config_dirs=[tmp_path])
    with pytest.raises(SpecError, match=r"trunk\._target_: 'os\.mkdir' is not allowed here"):
        composed.check()
    assert not witness.exists()


def test_every_block_is_an_option_that_says_what_it_is() -> None:
    library = Library()
    blocks = [kind for kind in kinds().values() if kind.module.startswith("mlplatform.blocks.")]
    assert len(blocks) > 20
    for kind in blocks:
        option = library.need(f"block/{kind.group}", kind.name)
        assert option.data["kind"] == kind.name
        validate(option.data, kind.group)
        first = (places.share() / option.name).read_text().splitlines()[0]
        assert first.startswith("# "), option.name


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
