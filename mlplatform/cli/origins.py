"""Lays config over config and remembers for every value where it came from and what it shadowed.

The rule of merging is the registry's: mappings merge, a mapping that states another `kind` replaces, all else replaces.
`???` (to be given) never hides a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlplatform.errors import SpecError, did_you_mean, listing
from mlplatform.registry import join

MISSING = "???"
Place = Callable[[str], str]
"""From a dotted path within what is laid to the words that say where it stands."""


@dataclass(frozen=True)
class Origin:
    """One statement of a value: what it said (`...` for a mapping or a list) and where."""

    value: Any
    place: str
    """`conf/model/llama.yaml:7`, or `the command line: model.trunk.depth=2`."""

    @property
    def words(self) -> str:
        return f"from {self.place}" if self.place.startswith("the command line") else self.place


class Layers:
    """A config under construction, and the origins of its values by dotted path, the last one valid."""

    def __init__(self) -> None:
        self.config: dict[Any, Any] = {}
        self.origins: dict[str, list[Origin]] = {}

    def lay(self, path: str, value: Any, place: Place, *, replace: bool = False) -> None:
        """Lay a value at a dotted path (the root when empty), making the mappings on the way.

        Args:
            replace: put it in the place of what is there, whatever its kind.

        Raises:
            SpecError: something on the way is a plain value.
        """
        if path:
            parent, key = self._parent(path)
            self._put(parent, key, path, value, place, "", replace)
        else:
            for name, item in value.items():
                self._put(self.config, name, str(name), item, place, str(name), replace)

    def delete(self, path: str) -> None:
        """Take a value out. Raises SpecError when there is none."""
        parent, key = find(self.config, path)
        del parent[key]

    def finished(self) -> dict[str, list[Origin]]:
        """Return the origins of the values that are still there."""
        there = {path for path, _ in walk(self.config)}
        return {path: found for path, found in self.origins.items() if path in there}

    def _parent(self, path: str) -> tuple[Any, Any]:
        names = path.split(".")
        node: Any = self.config
        for i, name in enumerate(names):
            here = ".".join(names[:i])
            if isinstance(node, list):
                if not name.isdecimal() or int(name) >= len(node):
                    raise SpecError(problems=[(here, f"a list of {len(node)}; there is no '{name}' in it")])
                key: Any = int(name)
            elif isinstance(node, dict):
                key = name
                if i < len(names) - 1 and node.get(name, MISSING) in (None, MISSING):
                    node[name] = {}
            else:
                raise SpecError(problems=[(here, f"{node!r} holds no '{name}'; it is a value, not a mapping")])
            if i == len(names) - 1:
                return node, key
            node = node[key]
        raise AssertionError(path)

    def _put(self, parent: Any, key: Any, path: str, value: Any, place: Place, inner: str, replace: bool) -> None:
        old = parent[key] if isinstance(parent, list) else parent.get(key)
        if isinstance(value, Mapping) and isinstance(old, dict) and not replace and not _other_kind(value, old):
            self._note(path, ..., place(inner))
            for name, item in value.items():
                self._put(old, name, join(path, str(name)), item, place, join(inner, str(name)), False)
        elif value != MISSING or old is None:
            parent[key] = self._copy(path, value, place, inner)

    def _copy(self, path: str, value: Any, place: Place, inner: str) -> Any:
        """Return the value with containers of its own, and note the origin of everything in it."""
        self._note(path, ... if isinstance(value, Mapping | list) and value else value, place(inner))
        if isinstance(value, Mapping):
            return {k: self._copy(join(path, str(k)), item, place, join(inner, str(k))) for k, item in value.items()}
        if isinstance(value, list):
            return [self._copy(join(path, str(i)), item, place, join(inner, str(i))) for i, item in enumerate(value)]
        return value

    def _note(self, path: str, value: Any, place: str) -> None:
        self.origins.setdefault(path, []).append(Origin(value, place))


def _other_kind(over: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether both say what they are (`kind`, or `_target_` for a class of the outside world) and differ in it."""
    names = [node.get("_target_", node.get("kind")) for node in (over, base)]
    return None not in names and names[0] != names[1]


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of everything below a node, mappings and lists before what they hold."""
    items = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        here = join(path, str(key))
        yield here, value
        yield from walk(value, here)


def is_leaf(value: Any) -> bool:
    """Whether a value has nothing below it."""
    return not (isinstance(value, Mapping | list) and value)


def find(config: Any, path: str) -> tuple[Any, Any]:
    """Return the container and key of a dotted path; keys may hold dots themselves (`hf.config.trunk.dim`).

    Raises SpecError with the nearest key where the path leaves the tree.
    """
    deepest: tuple[str, Any] = ("", config)

    def search(node: Any, rest: str, here: str) -> tuple[Any, Any] | None:
        nonlocal deepest
        if len(here) >= len(deepest[0]):
            deepest = (here, node)
        keys = node if isinstance(node, Mapping) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            if rest == str(key):
                return node, key
            if rest.startswith(f"{key}."):
                below = search(node[key], rest[len(str(key)) + 1 :], join(here, str(key)))
                if below is not None:
                    return below
        return None

    result = search(config, path, "")
    if result is not None:
        return result
    here, node = deepest
    wrong = path[len(here) + 1 if here else 0 :].split(".")[0]
    if isinstance(node, Mapping):
        keys = [str(k) for k in node]
        text = f"there is no '{wrong}'{did_you_mean(wrong, keys)}; there are {listing(keys, 30)}"
    else:
        text = f"there is no '{wrong}' in {node!r}"
    raise SpecError(problems=[(here, text)])


def select(config: Any, path: str) -> Any:
    """Return the value at a dotted path, the whole config for an empty one. Raises SpecError as `find` does."""
    if not path:
        return config
    container, key = find(config, path)
    return container[key]
