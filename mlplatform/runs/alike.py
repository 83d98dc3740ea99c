"""Reads thousands of config.yaml files that differ in few lines: what they have alike is parsed once.

The configs of a sweep are one text but for some values. Where a text differs from the one before, of as many lines, in
single-line values alone, those are parsed in their places; any other text is parsed whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from mlplatform.errors import RunError
from mlplatform.runs.config_file import LOADER, leaves


class Alike:
    """The texts that were read before, one for each number of lines."""

    def __init__(self) -> None:
        self.before: dict[int, _Text] = {}
        self.values: dict[str, Any] = {}

    def leaves(self, text: str) -> dict[str, Any]:
        """Return the leaves of a text by dotted path. Raises RunError when it is no mapping in YAML."""
        lines = text.split("\n")
        known = self.before.get(len(lines))
        found = known and self._changed(known, lines)
        if not found:
            found = _whole(text)
            self.before[len(lines)] = _Text(text, lines, found)
        return found

    def _changed(self, known: _Text, lines: list[str]) -> dict[str, Any] | None:
        """Return the leaves of a text by those of another; None where more differs than single values."""
        changed = [number for number, (a, b) in enumerate(zip(lines, known.lines, strict=True)) if a != b]
        found = dict(known.leaves)
        for number in changed:
            path, start = known.places.get(number, ("", 0))
            line = lines[number]
            if not path or line[:start] != known.lines[number][:start]:
                return None
            value = self._value(line[start:])
            if isinstance(value, dict | list):
                return None
            found[path] = value
        return found

    def _value(self, text: str) -> Any:
        """Return what a text is after `key: `, an empty list where it is not one value."""
        if text not in self.values:
            try:
                self.values[text] = yaml.load(f"key: {text}", Loader=LOADER)["key"]
            except (ValueError, yaml.YAMLError):
                self.values[text] = []
        return self.values[text]


class _Text:
    """A text that was parsed, and where its single-line values stand, looked for when they are needed."""

    def __init__(self, text: str, lines: list[str], leaves: dict[str, Any]) -> None:
        self.text, self.lines, self.leaves = text, lines, leaves
        self._places: dict[int, tuple[str, int]] | None = None

    @property
    def places(self) -> dict[int, tuple[str, int]]:
        """Line -> (dotted path, where the value begins), of lines with one value and nothing else."""
        if self._places is None:
            found = list(_values(yaml.compose(self.text, Loader=LOADER), ""))
            lines = [line for line, *_ in found]
            self._places = {line: (path, start) for line, path, start in found if lines.count(line) == 1}
        return self._places


def _values(node: Any, path: str) -> Iterator[tuple[int, str, int]]:
    """Yield (line, dotted path, column) of every value of a mapping that stands on the line of its key."""
    if isinstance(node, yaml.SequenceNode):
        for number, one in enumerate(node.value):
            yield from _values(one, f"{path}.{number}" if path else str(number))
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        place = f"{path}.{key.value}" if path else str(key.value)
        if isinstance(value, yaml.ScalarNode) and key.start_mark.line == value.end_mark.line:
            yield value.start_mark.line, place, value.start_mark.column
        yield from _values(value, place)


def _whole(text: str) -> dict[str, Any]:
    try:
        found = yaml.load(text, Loader=LOADER)
    except (ValueError, yaml.YAMLError) as error:
        raise RunError(f"can't be read: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise RunError("holds no config")
    return leaves(found)
