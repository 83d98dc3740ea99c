"""Which layers differ: Hugging Face's per-layer lists and "first n" numbers <-> our `exceptions`, both ways.

    trunk.exceptions: {layers: layer_types, every: 4, kinds: {sliding_attention: null, full_attention: CHANGE}}
    trunk.exceptions: {first: num_dense_layers, are: CHANGE}

CHANGE is what is merged over `layer`; null for the layer as it is. A value within it may be an operator of `hf.config`
with `key`, and is then read from their config: {mlp: {kind: gated_mlp, width: {key: intermediate_size}}}.
`every`, a number or a key, stands in for a list the file lacks: each n-th layer is of the kind listed last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlplatform.errors import CheckpointError, SpecError, listing
from mlplatform.interop.config_keys import assign, look
from mlplatform.interop.config_rules import Count, Find, RopeValue, Value, value_rule
from mlplatform.registry import select

Holes = dict[tuple[str, ...], Any]
LIST_KEYS = ("layers", "first")


class LayerRule:
    """One list or number of theirs and the exceptions it stands for."""

    def __init__(self, path: str, right: Mapping[str, Any], ignored: set[str]) -> None:
        self.path, self.right = path, right
        self.key: str = right.get("layers") or right["first"]
        self.every = right.get("every")
        self.changes: dict[Any, Any] = right["kinds"] if "kinds" in right else {"first": right["are"]}
        self.rules: dict[Any, dict[tuple[str, ...], Value | Count | RopeValue]] = {
            kind: {where: value_rule(f"{path}.{'.'.join(where)}", word, ignored) for where, word in _holes(change)}
            for kind, change in self.changes.items()
        }

    @property
    def depth_path(self) -> str:
        return f"{self.path.rpartition('.')[0]}.depth"

    @property
    def kept_keys(self) -> list[str]:
        """Keys a spec without such layers can't give back."""
        inner = [key for rules in self.rules.values() for rule in rules.values() for key in rule.keys]
        return [*inner, self.every] if isinstance(self.every, str) else inner

    @property
    def keys(self) -> list[str]:
        return [self.key, *self.kept_keys]

    def read(self, find: Find, exceptions: list[Any], depth: int) -> list[Any]:
        """Return the exceptions with those of this rule as their config says."""
        value = find(self.key)[1]
        if value is None:
            value = self._derived(find, depth)
        if value is None:
            return exceptions
        others = [item for item in exceptions if self.kind_of(item) is None]
        if "first" in self.right:
            return others + ([{"layers": f":{value}", **self._filled("first", find)}] if value else [])
        if strange := set(value) - set(self.changes):
            can = listing(str(kind) for kind in self.changes)
            raise CheckpointError(f"config.json says {self.key} has {sorted(strange)[0]!r}; the YAML can say {can}")
        items = []
        for kind, change in self.changes.items():
            if change and (numbers := [i for i, name in enumerate(value) if name == kind]):
                items.append({"layers": numbers, **self._filled(kind, find)})
        return others + items

    def write(
        self, exceptions: list[Any], depth: int, config: dict[str, Any], defaults: Mapping[str, Any], absent: set[str]
    ) -> None:
        """Set their list or number, and the keys within the changes."""
        names = [next((kind for kind, change in self.changes.items() if not change), None)] * depth
        for item in exceptions:
            kind = self.kind_of(item)
            if kind is None:
                continue
            for number in select(item["layers"], depth):
                names[number] = kind
            for where, rule in self.rules[kind].items():
                rule.write(_at(item, where), config, defaults, absent)
        if "first" in self.right:
            count = names.count("first")
            if names[:count].count("first") != count:
                raise SpecError(f"{self.path}: Hugging Face's '{self.key}' means the first layers, not some others")
            assign(config, self.key, count)
            return
        find = _finder(config, defaults)
        if self.key not in absent or names != self._derived(find, depth):
            assign(config, self.key, names)

    def kind_of(self, item: Mapping[str, Any]) -> Any:
        """Return which kind an exception of ours is, None for none of these."""
        stated = {key: value for key, value in item.items() if key != "layers"}
        return next((kind for kind, change in self.changes.items() if change and _fits(change, stated)), None)

    def _derived(self, find: Find, depth: int) -> list[Any] | None:
        every = find(self.every)[1] if isinstance(self.every, str) else self.every
        if not every:
            return None
        first, *_, last = self.changes
        return [first if (i + 1) % every else last for i in range(depth)]

    def _filled(self, kind: Any, find: Find) -> dict[str, Any]:
        def fill(change: Any, where: tuple[str, ...]) -> Any:
            if where in self.rules[kind]:
                rule = self.rules[kind][where]
                return rule.read(find, {"kind": "rope"} if isinstance(rule, RopeValue) else None)
            if isinstance(change, Mapping):
                return {key: fill(value, (*where, key)) for key, value in change.items()}
            return change

        return fill(self.changes[kind], ())


def _holes(change: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(change, Mapping) and "key" in change:
        yield where, change
    elif isinstance(change, Mapping):
        for key, value in change.items():
            yield from _holes(value, (*where, key))


def _fits(change: Any, stated: Any) -> bool:
    """Whether an exception is this change, whatever stands in its holes."""
    if isinstance(change, Mapping) and "key" in change:
        return True
    if isinstance(change, Mapping) and isinstance(stated, Mapping):
        return change.keys() == stated.keys() and all(_fits(change[key], stated[key]) for key in change)
    return change == stated


def _at(item: Any, where: tuple[str, ...]) -> Any:
    for key in where:
        item = item[key]
    return item


def _finder(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Find:
    def find(key: str) -> tuple[bool, Any]:
        there, value = look(config, key)
        return (there, value) if there else (key in defaults, defaults.get(key))

    return find
