"""JSON Schema says of a spec what the checker says of it."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest
import tiny

from mlplatform.errors import SpecError
from mlplatform.registry import json_schema, kinds, validate

GROUPS = sorted({kind.group for kind in kinds().values()})


@pytest.mark.parametrize("group", GROUPS)
def test_the_schema_of_every_group_is_one(group: str) -> None:
    schema = json_schema(group)
    jsonschema.Draft202012Validator.check_schema(schema)
    text = str(schema)
    for kind in kinds().values():
        name = f"kind.{kind.group}.{kind.name}"
        assert name in schema["$defs"]
        assert set(kind.fields) <= set(schema["$defs"][name]["properties"])
        assert schema["$defs"][name]["description"]
    for reference in set(re.findall(r"#/\$defs/([\w.]+)", text)):
        assert reference in schema["$defs"], "a reference that leads nowhere"


@pytest.mark.parametrize("spec", [tiny.encoder_decoder(), tiny.dual_tower(), tiny.vision_language()])
def test_sound_specs_are_accepted(spec: dict) -> None:
    jsonschema.validate(spec, json_schema("model"))


RANGES: list[tuple[str, Any, bool]] = [
    ("dim", 1, True), ("dim", 0, False), ("dim", 1.5, False), ("dim", "3", False), ("dim", None, False),
    ("dim", "${model.x}", True), ("dim", "???", True),
    ("final_norm", True, True), ("final_norm", "true", False),
    ("norm", {"kind": "rms_norm", "eps": 1e-5}, True), ("norm", {"kind": "rms_norm", "eps": 0}, False),
    ("norm", {"kind": "gated_mlp", "width": 3}, False), ("norm", "rms_norm", False), ("norm", {"eps": 1e-6}, True),
    ("layer", {"dropout": 0.5}, True), ("layer", {"dropout": 1.0}, False), ("layer", {"dropout": -1}, False),
    ("layer", {"attention": {"mask": "full"}}, True), ("layer", {"attention": {"mask": "fulll"}}, False),
    ("layer", {"attention": {"kv_heads": None}}, True), ("layer", {"attention": {"kv_heads": 0}}, False),
    ("layer", {"attention": {"rope": None}}, True), ("layer", {"attention": {"rope": {"theta": -1}}}, False),
    ("layer", {"attention": {"bias": "qkv"}}, True), ("layer", {"attention": {"bias": "kqv"}}, False),
    ("exceptions", [{"layers": "3::4", "mlp": {"width": 3}}], True), ("exceptions", [{"layers": 1, "mpl": {}}], False),
    ("exceptions", {"layers": 1}, False), ("dimm", 3, False), ("input", {"_target_": "os.system"}, False),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "accepted"), RANGES, ids=[f"{f}={v!r}"[:50] for f, v, _ in RANGES])
def test_ranges(field: str, value: Any, accepted: bool) -> None:
    data = {"kind": "single_tower", "trunk": {field: value}}
    try:
        jsonschema.validate(data, json_schema("model"))
        assert accepted
    except jsonschema.ValidationError:
        assert not accepted


@pytest.mark.parametrize(
    ("data", "group"),
    [
        ({"kind": "adamw", "betas": [0.9, 0.95]}, "optimizer"),
        ({"kind": "adamw", "betas": [0.9]}, "optimizer"),
        ({"kind": "adamw", "betas": [0.9, 1.5]}, "optimizer"),
        ({"kind": "muon", "matrices": ["*a*", ""]}, "optimizer"),
        ({"kind": "constant", "warmup": "2%"}, "schedule"),
        ({"kind": "constant", "warmup": "2 stesp"}, "schedule"),
        ({"kind": "several", "loggers": [{"kind": "wandb"}]}, "logger"),
        ({"kind": "several", "loggers": [{"kind": "wandbb"}]}, "logger"),
        ({"kind": "joint", "parts": {"a": {"kind": "span"}}}, "head"),
        ({"kind": "joint", "parts": {"a": {"kind": "spam"}}}, "head"),
        ({"_target_": "torch.optim.SGD", "lr": 3}, "optimizer"),
        ({"_target_": "os.system"}, "optimizer"),
    ],
    ids=str,
)
def test_schema_and_checker_agree(data: dict, group: str) -> None:
    try:
        validate(data, group)
        sound = True
    except SpecError:
        sound = False
    assert jsonschema.Draft202012Validator(json_schema(group)).is_valid(data) == sound


def test_editors_get_documentation_and_defaults() -> None:
    rope = json_schema("rope")["$defs"]["kind.rope.rope"]
    assert rope["description"].startswith("Turns each pair")
    assert rope["properties"]["theta"]["default"] == 10000.0
    assert rope["properties"]["scaling"]["default"] is None
    assert rope["properties"]["scaling"]["anyOf"][0] == {"$ref": "#/$defs/group.rope_scaling"}
