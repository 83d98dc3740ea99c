"""Reads the signatures of registered classes and functions from their source, without importing them.

Importing a block means importing torch (1.6 s here); reading a file with `ast` takes a millisecond or two, and only the
files of the kinds a config names are read, so it is checked in full before anything heavy starts. A test compares what
is read here with `inspect.signature`.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from mlplatform.errors import SpecError, did_you_mean, listing
from mlplatform.places import PACKAGE
from mlplatform.registry.vocabulary import NAMES

T = TypeVar("T")
ROOMS = ("blocks", "models", "processors", "data", "tasks", "training", "runs")
MISSING: Any = object()
_plugins: list[str] = []


def block(name: str) -> Callable[[T], T]:
    """Register a class or function as `group/kind`.

    Arguments before the `*` of its signature are handed down by the parent; keyword-only ones are its YAML fields.
    """
    group, _, kind = name.partition("/")
    if not group or not kind:
        raise ValueError(f"@block({name!r}): write it as 'group/kind'")

    def mark(thing: T) -> T:
        thing.kind, thing.group = kind, group  # type: ignore[attr-defined]
        return thing

    return mark


@dataclass(frozen=True)
class Field:
    """One YAML field of a kind: its annotation (as an object and as written) and its default."""

    name: str
    annotation: Any
    text: str
    default: Any = MISSING

    @property
    def required(self) -> bool:
        return self.default is MISSING


@dataclass(frozen=True)
class Kind:
    """A registered kind as its source states it."""

    name: str
    group: str
    module: str
    qualname: str
    handed: dict[str, bool]
    """Arguments the parent hands down -> whether they must be given."""
    fields: dict[str, Field]
    doc: str
    file: Path
    line: int


def use_plugins(packages: list[str]) -> None:
    """Add the blocks of outside packages or modules. Only ever called for the user's own command line or conf."""
    for package in packages:
        try:
            found = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            found = None
        if found is None:
            raise SpecError(f"plugins: no package '{package}' is installed")
        if package not in _plugins:
            _plugins.append(package)
            forget()


def forget() -> None:
    """Read the sources anew from here on."""
    _files.cache_clear()
    _read.cache_clear()


def kinds() -> dict[str, Kind]:
    """Return every registered kind by `group/kind`."""
    return {key: _read(module, file)[key] for key, (module, file) in _files().items()}


def lookup(name: object, group: str) -> Kind:
    """Return the kind of that name in the group; SpecError with the nearest name when there is none.

    Only the file the kind stands in is read as Python.
    """
    key, files = f"{group}/{name}", _files()
    if key in files:
        return _read(*files[key])[key]
    fitting = sorted(other.partition("/")[2] for other in files if other.startswith(f"{group}/"))
    others = [other.partition("/")[0] for other in files if other.endswith(f"/{name}")]
    there = f"there are {listing(fitting, 40)}"
    if others:
        raise SpecError(f"'{name}' is a {others[0]}, not a {group}; {there}")
    raise SpecError(f"no {group} '{name}'{did_you_mean(str(name), fitting)}; {there}")


@cache
def _files() -> dict[str, tuple[str, Path]]:
    """Return the module and the file of every `group/kind`, found as text where the decorator's line is plain."""
    found: dict[str, tuple[str, Path]] = {}
    for module, file in _sources():
        source = file.read_text(encoding="utf-8")
        marks = len(re.findall(r"^@block\(", source, re.MULTILINE))
        keys = re.findall(r"""^@block\(["']([^"'\\/]+/[^"'\\/]+)["']\)$""", source, re.MULTILINE)
        for key in keys if len(keys) == marks else _read(module, file):
            if key in found:
                raise SpecError(f"'{key}' is registered in {found[key][1]} and in {file}")
            found[key] = (module, file)
    return found


@cache
def _read(module: str, file: Path) -> dict[str, Kind]:
    """Return the kinds of one file by `group/kind`."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise SpecError(f"{file} can't be read as Python: {error}") from None
    found: dict[str, Kind] = {}
    for kind in _kinds_in(tree, module, file):
        key = f"{kind.group}/{kind.name}"
        if key in found:
            raise SpecError(f"'{key}' is registered twice in {file}")
        found[key] = kind
    return found


def _sources() -> Iterator[tuple[str, Path]]:
    roots = [(f"mlplatform.{room}", PACKAGE / room) for room in ROOMS]
    for package in _plugins:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            roots += [(package, Path(folder)) for folder in spec.submodule_search_locations]
        elif spec is not None and spec.origin is not None:  # a module of one file; its neighbours are not ours to read
            yield package, Path(spec.origin)
    for name, folder in roots:
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            yield ".".join((name, *(p for p in parts if p != "__init__"))), file


def _kinds_in(tree: ast.Module, module: str, file: Path) -> Iterator[Kind]:
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in tree.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            continue
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "block":
                where = f"{file}:{node.lineno}"
                try:
                    group, name = ast.literal_eval(decorator.args[0]).split("/")
                except (ValueError, AttributeError, IndexError):
                    text = ast.unparse(decorator)
                    raise SpecError(f"{where}: @{text} is read, not run; write @block('group/kind')") from None
                arguments = _constructor(node, classes, where).args
                yield Kind(
                    name=name,
                    group=group,
                    module=module,
                    qualname=node.name,
                    handed=_handed(arguments, method=isinstance(node, ast.ClassDef)),
                    fields=_fields(arguments, where),
                    doc=ast.get_docstring(node) or "",
                    file=file,
                    line=node.lineno,
                )


def _constructor(node: ast.ClassDef | ast.FunctionDef, classes: dict[str, ast.ClassDef], where: str) -> ast.FunctionDef:
    if isinstance(node, ast.FunctionDef):
        return node
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return item
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            return _constructor(classes[base.id], classes, where)
    raise SpecError(f"{where}: registered class {node.name} has no __init__ in its file")


def _handed(arguments: ast.arguments, *, method: bool) -> dict[str, bool]:
    names = [a.arg for a in arguments.args][1 if method else 0 :]
    optional = len(arguments.defaults)
    return {name: i < len(names) - optional for i, name in enumerate(names)}


def _fields(arguments: ast.arguments, where: str) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if argument.annotation is None:
            raise SpecError(f"{where}: argument '{argument.arg}' has no annotation")
        text = ast.unparse(argument.annotation)
        try:
            annotation = eval(text, {"__builtins__": {}}, NAMES)  # our own source, evaluated with the vocabulary only
        except Exception:
            raise SpecError(f"{where}: annotation '{text}' of '{argument.arg}' is not in the vocabulary") from None
        try:
            value = MISSING if default is None else ast.literal_eval(default)
        except ValueError:
            text = ast.unparse(default) if default is not None else ""
            raise SpecError(f"{where}: default '{text}' of '{argument.arg}' is no plain value") from None
        fields[argument.arg] = Field(argument.arg, annotation, text, value)
    return fields
