"""Spec: one node of a config tree, which knows its path and builds what it names."""

from __future__ import annotations

import importlib
import inspect
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

from mlplatform.errors import SpecError
from mlplatform.registry.checking import _holds_slot, _mark, join, validate
from mlplatform.registry.signatures import Kind, lookup
from mlplatform.registry.targets import resolve_target
from mlplatform.registry.vocabulary import Slot


class Spec:
    """A checked node of the config tree.

    Constructors receive their nested fields as Specs and build them with what they hand down:
    `self.mlp = mlp.build(dim=dim)`. Of what is handed, a block gets the arguments it names.
    """

    def __init__(self, data: Mapping[str, Any], path: str, group: str) -> None:
        self.data = dict(data)
        self.path = path
        self.group = group

    @classmethod
    def of(cls, data: Mapping[str, Any] | Spec, group: str, path: str = "") -> Spec:
        """Return a checked Spec. Raises SpecError listing every problem."""
        if isinstance(data, Spec):
            return data
        validate(data, group, path)
        return cls(data, path, group)

    @property
    def kind(self) -> str:
        return str(self.data.get("kind", self.data.get("_target_")))

    @property
    def signature(self) -> Kind:
        return lookup(self.data["kind"], self.group)

    @property
    def thing(self) -> Any:
        """The class or function this node names. Raises SpecError for a `_target_` that may not be named."""
        if "_target_" in self.data:
            return resolve_target(self.data["_target_"], self.group, self.path)
        return getattr(importlib.import_module(self.signature.module), self.signature.qualname)

    def __getitem__(self, name: str) -> Any:
        """Return a field's value, or its default when the YAML does not state it."""
        return self.data[name] if name in self.data else self.signature.fields[name].default

    def child(self, name: str) -> Spec:
        """Return the nested spec under a field. Raises SpecError when the field is empty."""
        value = self._argument(name, self[name])
        if not isinstance(value, Spec):
            raise SpecError(problems=[(join(self.path, name), f"a nested spec is needed here, not {value!r}")])
        return value

    def build(self, **handed: Any) -> Any:
        """Import the class this node names and call it with its fields and what the parent hands down.

        Raises:
            SpecError: the block needs something its place doesn't hand down, or refuses its values.
        """
        if "_target_" in self.data:
            return self._build_target(handed)
        signature = self.signature
        missing = [name for name, needed in signature.handed.items() if needed and name not in handed]
        if missing:
            text = f"{signature.name} can't stand here: it needs '{missing[0]}', which this place doesn't hand down"
            raise SpecError(problems=[(self.path, text)])
        given = {name: value for name, value in handed.items() if name in signature.handed}
        fields = {name: self._argument(name, value) for name, value in self.data.items() if name != "kind"}
        try:
            return self.thing(**given, **fields)
        except SpecError as error:
            raise error.below(self.path) from None

    def _argument(self, name: str, value: Any) -> Any:
        annotation = self.signature.fields[name].annotation
        options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
        for option in options:
            mark = _mark(option)
            if isinstance(mark, Slot) and isinstance(value, Mapping):
                return Spec(value, join(self.path, name), mark.group)
            if get_origin(option) is list and _holds_slot(option) and isinstance(value, list):
                group = _mark(get_args(option)[0]).group
                return [Spec(item, f"{join(self.path, name)}.{i}", group) for i, item in enumerate(value)]
            if get_origin(option) is dict and _holds_slot(option) and isinstance(value, Mapping):
                group = _mark(get_args(option)[1]).group
                return {key: Spec(item, join(join(self.path, name), key), group) for key, item in value.items()}
            if get_origin(option) is tuple and isinstance(value, list):
                return tuple(value)
        return value

    def _build_target(self, handed: dict[str, Any]) -> Any:
        target = self.thing
        known = inspect.signature(target).parameters
        given = {name: value for name, value in handed.items() if name in known}
        fields = {name: value for name, value in self.data.items() if name != "_target_"}
        try:
            return target(**given, **fields)
        except (TypeError, ValueError) as error:
            raise SpecError(problems=[(self.path, f"{self.data['_target_']}: {error}")]) from None

    def __repr__(self) -> str:
        return f"Spec({self.path or '.'}: {self.kind})"
