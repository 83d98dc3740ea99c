"""Reads YAML files that may come from anyone: bounded in size, depth and aliases; no tags; every value's line is kept.

Scalars follow YAML 1.2's core schema, which is also what the command line's grammar says: `on` and `no` are texts,
`1:30` is not sixty-based, `1e-3` is a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mlplatform.errors import SpecError

MOST_BYTES = 1_000_000
MOST_DEPTH = 64
MOST_NODES = 100_000
TOO_DEEP = f"nested more than {MOST_DEPTH} levels deep"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

NULL = re.compile(r"null|Null|NULL|~|")
TRUE, FALSE = re.compile(r"true|True|TRUE"), re.compile(r"false|False|FALSE")
INTEGER = re.compile(r"[-+]?[0-9](_?[0-9])*")
BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9](_?[0-9])*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
SPECIAL = {".nan": "nan", ".inf": "inf", "+.inf": "inf", "-.inf": "-inf"}


@dataclass
class Document:
    """One YAML file: what it says, and on which line each dotted path stands."""

    data: dict[Any, Any]
    name: str
    """The file as messages name it."""
    lines: dict[str, int] = field(default_factory=dict)
    package: str | None = None
    """Hydra's `# @package NAME` header."""

    def place(self, path: str) -> str:
        """Return `file:line` of a dotted path, or of the nearest path above it."""
        while path and path not in self.lines:
            path = path.rpartition(".")[0]
        return f"{self.name}:{self.lines[path]}" if path else self.name


def read(path: Path, name: str | None = None) -> Document:
    """Read a YAML file whose top is a mapping.

    Args:
        name: the file as messages name it; the path itself when None.

    Raises:
        SpecError: one line naming the file and the line, whatever is wrong with it.
    """
    name = name or str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{name}: can't be read ({error.strerror})") from None
    if len(raw) > MOST_BYTES:
        raise SpecError(f"{name}: more than {MOST_BYTES // 1_000_000} MB; a config is a few kB, is this a data file?")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{name}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    return parse(text, name)


def parse(text: str, name: str) -> Document:
    """Read YAML text; `name` stands for the file in messages. Raises SpecError as `read` does."""
    try:
        builder = _Builder(name)
        data = builder.document(yaml.parse(text, Loader=LOADER))
    except yaml.YAMLError as error:
        raise SpecError(_what_is_wrong(error, text, name)) from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise SpecError(f"{name}: the top of a config is a mapping (key: value), not {type(data).__name__}")
    return Document(data, name, builder.lines, _package(text))


def _package(text: str) -> str | None:
    """Return NAME of `# @package NAME` among the comments that open the file."""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if match := re.fullmatch(r"#\s*@package\s*:?\s*(\S+)\s*", line):
            return match[1]
    return None


def _what_is_wrong(error: yaml.YAMLError, text: str, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{name}: {' '.join(str(error).split())}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())] or line[mark.column : mark.column + 1] == "\t":
        return f"{name}:{mark.line + 1}: a tab; YAML is indented with spaces"
    problem, context = getattr(error, "problem", None), getattr(error, "context", None)
    if "nesting depth" in (problem or ""):  # libyaml's own limit, met as it reads ahead of us
        return f"{name}:{mark.line + 1}: {TOO_DEEP}"
    return f"{name}:{mark.line + 1}: {', '.join(p for p in (context, problem) if p)}: {line.strip()[:60]!r}"


class _Builder:
    """Turns the parser's events into plain values, without yaml's constructors."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[str, int] = {}
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.nodes = 0

    def document(self, events: Iterator[Any]) -> Any:
        self.events = events
        result, documents = None, 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self.error(event, "a second document ('---'); a config is one document")
                result = self.node(next(events), "", 0)
        return result

    def error(self, event: Any, text: str) -> SpecError:
        return SpecError(f"{self.name}:{event.start_mark.line + 1}: {text}")

    def node(self, event: Any, path: str, depth: int) -> Any:
        before = self.nodes
        self.count(event, 1)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                raise self.error(event, f"*{event.anchor} is used before it is defined, or within itself")
            value, size = self.anchors[event.anchor]
            self.count(event, size)
            return value
        if event.tag is not None:
            raise self.error(event, f"the tag {event.tag!r} is not read; a config holds plain values only")
        if depth > MOST_DEPTH:
            raise self.error(event, TOO_DEEP)
        if isinstance(event, yaml.MappingStartEvent):
            value = self.mapping(path, depth)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self.sequence(path, depth)
        else:
            value = self.scalar(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, self.nodes - before)
        return value

    def count(self, event: Any, more: int) -> None:
        self.nodes += more
        if self.nodes > MOST_NODES:
            raise self.error(event, f"more than {MOST_NODES} values once its aliases (*name) are expanded")

    def mapping(self, path: str, depth: int) -> dict[Any, Any]:
        result: dict[Any, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self.error(event, "a key must be a plain word")
            key = self.node(event, path, depth + 1)
            if key == "<<" and event.implicit[0]:
                raise self.error(event, "merge keys ('<<') are not read; inherit with a defaults list")
            if key is None or isinstance(key, float):
                raise self.error(event, f"{event.value!r} can't be a key; put it in quotes")
            here = f"{path}.{key}" if path else str(key)
            if key in result:
                raise self.error(event, f"'{key}' is stated twice, first on line {self.lines[here]}")
            self.lines[here] = event.start_mark.line + 1
            result[key] = self.node(next(self.events), here, depth + 1)
        return result

    def sequence(self, path: str, depth: int) -> list[Any]:
        result: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            here = f"{path}.{len(result)}" if path else str(len(result))
            self.lines[here] = event.start_mark.line + 1
            result.append(self.node(event, here, depth + 1))
        return result

    def scalar(self, event: Any) -> Any:
        text = event.value
        if not event.implicit[0]:
            return text  # quoted, or a block of text
        if NULL.fullmatch(text):
            return None
        if TRUE.fullmatch(text) or FALSE.fullmatch(text):
            return bool(TRUE.fullmatch(text))
        try:
            if INTEGER.fullmatch(text):
                return int(text)
            if BASED.fullmatch(text):
                return int(text, 0)
        except ValueError:
            raise self.error(event, f"a number of {len(text)} digits") from None
        if FLOAT.fullmatch(text):
            return float(text)
        return float(SPECIAL[text.lower()]) if text.lower() in SPECIAL else text
