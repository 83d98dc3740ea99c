"""Composes a config: Hydra's grammar and defaults lists, our merging, and for every value where it came from.

Hydra parses the overrides and works out which files come in which order; nothing is ever instantiated by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from mlplatform.cli.hydra_errors import in_our_words, refuse_sweep, syntax_error
from mlplatform.cli.library import Library, no_option
from mlplatform.cli.origins import MISSING, Layers, Origin, select, walk
from mlplatform.cli.resolving import resolve
from mlplatform.cli.safe_yaml import Document
from mlplatform.errors import SpecError
from mlplatform.registry import join, kinds, use_plugins, validate

ROOT = "mlplatform_root"


@dataclass
class Composed:
    """A composed config, resolved and plain, which knows where each of its values came from."""

    config: dict[str, Any]
    raw: dict[str, Any]
    """The same before `${...}` was resolved."""
    origins: dict[str, list[Origin]]
    """Dotted path -> every statement of that value, the last one valid."""
    overrides: list[str]
    from_environment: set[str]
    """Paths whose value came from `${oc.env:...}`; they are masked wherever a config is written or shown."""
    group: str
    """What the root is: `run`, or `model` when a model was composed alone."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    choices: dict[str, str | None] = field(default_factory=dict)
    """Hydra's choices: group -> option."""
    rekinded: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Paths whose `kind` the command line changed in place -> (the kind before, how to swap it whole)."""

    def check(self, part: str = "") -> Composed:
        """Validate the whole tree, or the group that stands at `part` (`model`), and return self.

        Raises SpecError with every problem, each with the file and line or the override it came from.
        """
        tree = select(self.config, part)
        problems = [(path, text) for path, text in self.problems if path.startswith(part)]
        unset = (path for path, value in walk(tree, part) if value == MISSING)
        missing = {path: f"a value is needed; give it with {path}=..." for path in unset}
        with self.located():
            use_plugins(self.config.get("plugins") or [])
            try:
                validate(tree, part or self.group, part)
            except SpecError as error:
                said = {path for path, _ in problems} | missing.keys()
                problems += [(path, text) for path, text in error.problems if path not in said]
            problems += missing.items()
            if problems:
                raise SpecError(problems=problems)
        return self

    @contextmanager
    def located(self) -> Iterator[None]:
        """Add to every SpecError raised inside where the value it complains of came from."""
        try:
            yield
        except SpecError as error:
            raise SpecError(problems=[(path, self._located(path, text)) for path, text in error.problems]) from None

    def origin(self, path: str) -> Origin | None:
        """Return the valid origin of a path, or of the nearest one above it."""
        while path:
            if path in self.origins:
                return self.origins[path][-1]
            path = path.rpartition(".")[0]
        return None

    def masked(self) -> dict[str, Any]:
        """Return the config with `${oc.env:...}` left as written, so that no value of the environment is shown."""
        return _masked(self.config, self.raw, "", self.from_environment)

    def _located(self, path: str, text: str) -> str:
        if path in self.from_environment:
            text = text.replace(repr(select(self.config, path)), repr(select(self.raw, path)))
        holder = path.rpartition(".")[0]
        if holder in self.rekinded:
            before, advice = self.rekinded[holder]
            if "has no field" in text:
                text = f"{text.split(';')[0]}: left over from '{before}'; {advice}, or delete it with ~{path}"
            elif " needs '" in text:
                text = f"{text}; {advice}"
        # "heads=8 is not a multiple of kv_heads=3", "single runs on one device and trainer.devices=2"
        named = [key for name in re.findall(r"([\w.]+)=", text) for key in (join(path, name), name)]
        found = [self.origins[key][-1] for key in named if key in self.origins]
        own = self.origin(path if path in self.origins else join(holder, "kind")) if path else None
        if own is not None and (not found or own.value is not ...):
            found.insert(0, own)
        places = dict.fromkeys(origin.words for origin in found)
        return f"{text} ({'; '.join(places)})" if places else text


def compose(
    config_name: str = "train", overrides: Sequence[str] = (), config_dirs: Iterable[str | Path] = ()
) -> Composed:
    """Compose a config of the conf folder by Hydra's rules.

    Args:
        overrides: as typed: `model=llama`, `model.trunk.depth=2`, `~a.b`, `block/mlp@model.trunk.layer.mlp=moe`.
        config_dirs: folders with the user's own options, looked up before the shipped ones.

    Raises:
        SpecError: one line naming the override or the file and line. The result is not validated yet: see `check`.
    """
    library = Library(config_dirs)
    if library.document(config_name) is None:
        raise SpecError(f"there is no {config_name}.yaml in {library.folders[0].shown}")
    return _compose(library, config_name, list(overrides), "run")


def compose_model(name: str, overrides: Sequence[str] = (), config_dirs: Iterable[str | Path] = ()) -> Composed:
    """Compose a model alone; paths are relative to it (`trunk.depth=2`, `block/mlp@trunk.layer.mlp=moe`)."""
    library = Library(config_dirs, roots={ROOT: [{"model@_global_": name}]})
    library.need("model", name)
    return _compose(library, ROOT, list(overrides), "model")


def _compose(library: Library, primary: str, tokens: list[str], group: str) -> Composed:
    overrides = [_without(override, library) for override in parse(tokens)]
    _check_choices(overrides, library)
    order = _defaults_list(library, primary, overrides)
    layers = Layers()
    _lay_files(layers, library, order, overrides)
    rekinded: dict[str, tuple[str, str]] = {}
    for override in order.config_overrides:
        _apply(layers, override, library, rekinded)
    config, from_environment, problems = resolve(layers.config)
    choices = dict(order.overrides.known_choices)
    found = layers.finished()
    return Composed(config, layers.config, found, tokens, from_environment, group, problems, choices, rekinded)


def parse(tokens: Sequence[str]) -> list[Override]:
    """Parse overrides by Hydra's grammar. Raises SpecError for bad syntax, sweeps and settings of Hydra itself."""
    parser = OverridesParser.create()
    parsed = []
    for token in tokens:
        try:
            [override] = parser.parse_overrides([token])
        except HydraException as error:
            raise syntax_error(token, error) from None
        if override.is_sweep_override():
            raise refuse_sweep(token)
        if override.is_hydra_override() or override.key_or_group == "hydra":
            raise SpecError(
                f"{token}: Hydra composes only here; a run's folder, launcher and log are set by this project"
            )
        parsed.append(override)
    return parsed


def _without(override: Override, library: Library) -> Override:
    """Return `group=null` as `~group`: Hydra takes a group of its defaults out by this alone."""
    none = override.type is OverrideType.CHANGE and override.value() is None
    if not none or not library.group_exists(override.key_or_group):
        return override
    return replace(override, type=OverrideType.DEL, value_type=None, _value=None)


def _check_choices(overrides: list[Override], library: Library) -> None:
    for override in overrides:
        group, value = override.key_or_group, override.value()
        if override.is_delete() or isinstance(value, dict) or not library.group_exists(group):
            if override.package is not None and not override.is_delete():
                raise SpecError(no_option("config group", group, library.groups()) + _token(override))
            continue
        if group == "":
            raise SpecError(f"{override.input_line}: a name is missing before '='")
        if isinstance(value, list) and any(not library.need(group, str(name)).package for name in value):
            raise SpecError(f"{override.input_line}: one {group} can stand there; give a single name")
        for name in value if isinstance(value, list) else [value]:
            if name is not None and (not isinstance(name, str) or library.document(f"{group}/{name}") is None):
                raise SpecError(no_option(group, name, library.options(group)) + _token(override))


def _token(override: Override) -> str:
    return f" (from the command line: {override.input_line})"


def _defaults_list(library: Library, primary: str, overrides: list[Override]) -> DefaultsList:
    """Return Hydra's order of files. An option put at a package without a default there is a swap: it comes last."""

    def order(given: list[Override]) -> DefaultsList:
        try:
            return create_defaults_list(library, primary, given, prepend_hydra=False, skip_missing=False)
        except (HydraException, ValueError, AssertionError, RecursionError) as error:
            raise in_our_words(error, library, given) from None

    placed = [o for o in overrides if o.package is not None and o.type is OverrideType.CHANGE]
    if not placed:
        return order(overrides)
    known = order([o for o in overrides if o not in placed]).overrides.known_choices
    swaps = [o for o in placed if f"{o.key_or_group}@{o.package}" not in known]
    return order([replace(o, type=OverrideType.ADD) if o in swaps else o for o in overrides])


def _lay_files(layers: Layers, library: Library, order: DefaultsList, overrides: list[Override]) -> None:
    """Lay the files in order. A block put in from outside the blocks' folder replaces what is in its place.

    So does a model put in the place of a model's part: a GPT-2 laid over a Llama would keep its rope.
    """
    chosen = [o for o in overrides if library.group_exists(o.key_or_group) and not isinstance(o.value(), dict)]
    words = {o.package or o.key_or_group.replace("/", "."): f"the command line: {o.input_line}" for o in chosen}
    before: ResultDefault | None = None
    for default in order.defaults:
        document = library.document(default.config_path or "")
        assert document is not None
        package = default.package or ""
        whole = _whole(order.defaults, default) if _is_part(default) else None
        new = whole is not None and whole is not before
        data = {key: value for key, value in document.data.items() if key != "defaults"}

        def place(inner: str, name: str = package, file: Document = document) -> str:
            return words[name] if not inner and name in words else file.place(inner)

        if new and whole is not None and whole.package != package:  # a part of the new part comes first
            layers.lay(whole.package or "", {}, place, replace=True)
            new = False
        if data:
            layers.lay(package, data, place, replace=new)
        before = whole


def _is_part(default: ResultDefault) -> bool:
    """Whether a file is put in the place of a part: any block, and a model that is not the run's."""
    path = default.config_path or ""
    return path.startswith("block/") or (path.startswith("model/") and default.package not in ("", "model"))


def _whole(defaults: list[ResultDefault], default: ResultDefault) -> ResultDefault:
    """Return the file of the option that a part's file belongs to: what it inherits and holds is laid with it."""
    while True:
        above = next((d for d in defaults if d.config_path == default.parent and _is_part(d)), None)
        if above is None:
            return default
        default = above


def _apply(layers: Layers, override: Override, library: Library, rekinded: dict[str, tuple[str, str]]) -> None:
    path, value, token = override.key_or_group, override.value(), override.input_line
    place = f"the command line: {token}"
    try:
        if override.is_delete():
            held = select(layers.config, path)
            if value is not None and value != held:
                raise SpecError(problems=[(path, f"is {held!r}, not {value!r}, so it is not deleted")])
            layers.delete(path)
            return
        if override.is_add() and not isinstance(value, dict | list) and _is_stated(layers, path):
            raise SpecError(problems=[(path, "is there already; leave the '+' away to change it")])
        _note_kind(layers, path, value, library, rekinded)
        layers.lay(path, value, lambda inner: place)
    except SpecError as error:
        raise SpecError(problems=[(where, f"{text} (from {place})") for where, text in error.problems]) from None


def _is_stated(layers: Layers, path: str) -> bool:
    try:
        return select(layers.config, path) is not None
    except SpecError:
        return False


def _note_kind(layers: Layers, path: str, value: Any, library: Library, rekinded: dict[str, tuple[str, str]]) -> None:
    """Remember a `kind` the command line changes in place: the fields of the kind before it stay where they are."""
    node, _, name = path.rpartition(".")
    if name != "kind" or not node or not _is_stated(layers, path):
        return
    before = select(layers.config, path)
    if before == value:
        return
    advice = f"replace the whole of {node} instead: {node}={{kind: {value}, ...}}"
    for kind in kinds().values():
        if kind.name == value and library.document(f"block/{kind.group}/{value}") is not None:
            advice = f"swap the whole block with block/{kind.group}@{node}={value}"
        elif kind.name == value and library.document(f"{kind.group}/{value}") is not None and node == kind.group:
            advice = f"choose the whole with {node}={value}"
    rekinded[node] = (str(before), advice)


def _masked(value: Any, raw: Any, path: str, hidden: set[str]) -> Any:
    if path in hidden:
        return raw
    if isinstance(raw, str):
        return value  # a whole node was taken over by an interpolation, none of it from the environment
    if isinstance(value, dict):
        return {k: _masked(v, raw[k], join(path, str(k)), hidden) for k, v in value.items()}
    if isinstance(value, list):
        return [_masked(v, raw[i], join(path, str(i)), hidden) for i, v in enumerate(value)]
    return value
