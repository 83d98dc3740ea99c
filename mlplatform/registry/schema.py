"""JSON Schema for editors, made from the same signatures that check a config."""

from __future__ import annotations

import types
from typing import Any, Union, get_args, get_origin

from pydantic import TypeAdapter

from mlplatform.registry.checking import _holds_slot, _mark
from mlplatform.registry.signatures import Kind, kinds
from mlplatform.registry.targets import TARGET_GROUPS
from mlplatform.registry.vocabulary import Alternatives, Chosen, Overlays, Slot

INTERPOLATION = {"type": "string", "pattern": r"^\$\{"}
DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(group: str) -> dict[str, Any]:
    """Return the schema of a YAML file that states a spec of this group, whole or in part.

    A file may leave out what it inherits, so nothing is required; unknown keys are refused everywhere.
    """
    every = kinds().values()
    definitions: dict[str, Any] = {f"kind.{kind.group}.{kind.name}": _of_kind(kind) for kind in every}
    for name in sorted({kind.group for kind in every}):
        options = [{"$ref": f"#/$defs/kind.{kind.group}.{kind.name}"} for kind in every if kind.group == name]
        definitions[f"group.{name}"] = {"anyOf": options + [_target(p) for p in TARGET_GROUPS.get(name, ())]}
    return {"$schema": DRAFT, "$ref": f"#/$defs/group.{group}", "$defs": definitions}


def _of_kind(kind: Kind) -> dict[str, Any]:
    properties: dict[str, Any] = {"kind": {"const": kind.name}, "defaults": {"type": "array"}, "layers": {}}
    for name, field in kind.fields.items():
        properties[name] = _of_annotation(field.annotation, kind)
        if not field.required and isinstance(field.default, (int, float, str, bool, type(None))):
            properties[name] = {**properties[name], "default": field.default}
    doc = kind.doc.split("\n\n")[0].replace("\n", " ")
    return {"type": "object", "description": doc, "properties": properties, "additionalProperties": False}


def _of_annotation(annotation: Any, kind: Kind) -> dict[str, Any]:
    mark = _mark(annotation)
    if isinstance(mark, Slot):
        return {"$ref": f"#/$defs/group.{mark.group}"}
    if isinstance(mark, Overlays):
        return {"type": "array", "items": _of_annotation(kind.fields[mark.of].annotation, kind)}
    if isinstance(mark, Alternatives):
        of = _of_annotation(kind.fields[mark.of].annotation, kind)
        return {"type": "object", "additionalProperties": of}
    if isinstance(mark, Chosen):
        return {"type": "string"}
    if get_origin(annotation) in (Union, types.UnionType):
        return {"anyOf": [_of_annotation(option, kind) for option in get_args(annotation)]}
    if get_origin(annotation) is list and _holds_slot(annotation):
        return {"type": "array", "items": _of_annotation(get_args(annotation)[0], kind)}
    if get_origin(annotation) is dict and _holds_slot(annotation):
        return {"type": "object", "additionalProperties": _of_annotation(get_args(annotation)[1], kind)}
    return {"anyOf": [TypeAdapter(annotation).json_schema(), INTERPOLATION, {"const": "???"}]}


def _target(prefix: str) -> dict[str, Any]:
    return {"type": "object", "required": ["_target_"], "properties": {"_target_": {"pattern": f"^{prefix}"}}}
