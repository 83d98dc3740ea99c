"""Spec: a node's fields, children and path; building; errors that name the place."""

from __future__ import annotations

import pytest
import tiny
import torch

from mlplatform.errors import SpecError
from mlplatform.registry import Spec


def tower() -> Spec:
    return Spec.of({"kind": "single_tower", "trunk": tiny.tower()}, "model", "model").child("trunk")


def test_fields_and_their_defaults() -> None:
    attention = tower().child("layer").child("attention")
    assert (attention.kind, attention.group, attention.path) == (
        "attention",
        "attention",
        "model.trunk.layer.attention",
    )
    assert attention["heads"] == 4
    assert attention["kv_heads"] is None
    assert attention["dropout"] == 0.0
    assert attention.signature.qualname == "Attention"
    assert attention.child("rope")["theta"] == 10000.0
    assert repr(attention) == "Spec(model.trunk.layer.attention: attention)"


def test_a_child_that_is_not_there() -> None:
    with pytest.raises(SpecError, match=r"model\.trunk\.position_bias: a nested spec is needed here, not None"):
        tower().child("position_bias")


def test_a_block_gets_what_it_names_of_what_is_handed_down() -> None:
    norm = tower().child("norm").build(dim=5, context_length=9, tower_norm=None, index=3)
    assert norm.weight.shape == (5,)


def test_a_block_in_a_place_that_does_not_hand_it_what_it_needs() -> None:
    spec = Spec.of({"kind": "alibi"}, "position_bias", "model.trunk.position_bias")
    with pytest.raises(SpecError) as caught:
        spec.build(dim=3)
    place, text = caught.value.problems[0]
    assert place == "model.trunk.position_bias"
    assert text == "alibi can't stand here: it needs 'heads', which this place doesn't hand down"


def test_an_error_of_a_constructor_gets_the_path_of_its_block() -> None:
    data = {"kind": "single_tower", "trunk": tiny.tower()}
    data["trunk"]["layer"]["attention"]["kv_heads"] = 3
    from mlplatform.models import build

    with pytest.raises(SpecError) as caught:
        build(data)
    [(path, text)] = caught.value.problems
    assert path == "model.trunk.layer.attention"
    assert text == "heads=4 is not a multiple of kv_heads=3; kv_heads may be 1, 2, 4"


def test_lists_and_mappings_of_specs() -> None:
    several = Spec.of({"kind": "several", "loggers": [{"kind": "tensorboard"}, {"kind": "wandb"}]}, "logger", "logger")
    loggers = several._argument("loggers", several["loggers"])
    assert [s.path for s in loggers] == ["logger.loggers.0", "logger.loggers.1"]
    joint = Spec.of({"kind": "joint", "parts": {"a": {"kind": "span"}}}, "head", "head")
    built = joint.build(dim=4, tower_norm=None, table=torch.nn.Embedding(3, 4))
    assert built.parts["a"].out.weight.shape == (2, 4)


def test_lists_become_tuples_where_the_field_is_one() -> None:
    spec = Spec.of({"kind": "adamw", "betas": [0.5, 0.6]}, "optimizer")
    optimizer = spec.build(model=torch.nn.Linear(2, 2))
    assert optimizer.defaults["betas"] == (0.5, 0.6)


def test_a_spec_is_checked_when_it_is_made_and_then_trusted() -> None:
    with pytest.raises(SpecError, match="rms_norm has no field 'epz'"):
        Spec.of({"kind": "rms_norm", "epz": 1}, "norm")
    spec = Spec.of({"kind": "rms_norm"}, "norm", "here")
    assert Spec.of(spec, "norm") is spec


def test_problems_and_their_places() -> None:
    error = SpecError("a is wrong")
    assert str(error) == "a is wrong"
    assert str(error.below("x.y")) == "x.y: a is wrong"
    assert str(error.below("x.y").below("z")) == "x.y: a is wrong"
    both = SpecError(problems=[("p", "one"), ("", "two")])
    assert str(both) == "p: one\ntwo"
    assert both.exit_code == 2
