"""Checks a config tree against the signatures: every unknown key, wrong type and value out of range at once."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from mlplatform.errors import SpecError, did_you_mean, listing
from mlplatform.registry.layering import merge, select
from mlplatform.registry.signatures import Field, Kind, lookup
from mlplatform.registry.targets import check_target
from mlplatform.registry.vocabulary import Alternatives, Chosen, Interval, Overlays, Slot

Problems = Iterator[tuple[str, str]]
LENGTH = "it should be a number with its unit: '600 steps', '2B tokens', '30 min', '1 epochs', '2%'"


def validate(data: Any, group: str, path: str = "") -> None:
    """Raise one SpecError with all problems of a spec of that group; return nothing when it is sound."""
    problems = list(check_spec(data, group, path))
    if problems:
        raise SpecError(problems=problems)


def check_spec(data: Any, group: str, path: str) -> Problems:
    """Yield (path, message) for every problem of one spec and its children."""
    if not isinstance(data, Mapping):
        yield path, f"a {group} is a mapping with a 'kind', not {data!r}"
        return
    if "_target_" in data:
        yield from check_target(data, group, path)
        return
    if "kind" not in data:
        yield path, f"'kind' is missing; it names which {group} this is"
        return
    try:
        kind = lookup(data["kind"], group)
    except SpecError as error:
        yield join(path, "kind"), str(error)
        return
    yield from _check_names(data, kind, path)
    for name, field in kind.fields.items():
        if name in data:
            yield from _check_value(data[name], field.annotation, data, kind, join(path, name))


def join(path: str, key: str) -> str:
    """Return `path.key`, or `key` at the root."""
    return f"{path}.{key}" if path else key


def _check_names(data: Mapping[str, Any], kind: Kind, path: str) -> Problems:
    for name in data:
        if name in kind.handed and name not in kind.fields:
            yield join(path, name), f"'{name}' of {kind.name} is set by what holds it; delete it here"
        elif name != "kind" and name not in kind.fields:
            near = did_you_mean(name, kind.fields)
            yield join(path, name), f"{kind.name} has no field '{name}'{near}; it has {listing(kind.fields, 30)}"
    for name, field in kind.fields.items():
        if data.get(name) == "???" or (field.required and name not in data):
            yield join(path, name), f"{kind.name} needs '{name}' ({_words(field.text)})"


def _words(text: str) -> str:
    """Return an annotation for a message: `Annotated[Spec, 'mlp']` is a block of a group."""
    meant = {
        "Spec": "a block of group {}",
        "Exceptions": "changes of layers",
        "Named": "a mapping of names to {} blocks",
    }
    return re.sub(
        r"Annotated\[(\w+), '(\w+)'\]", lambda found: meant.get(found[1], "a name among {}").format(found[2]), text
    )


def _check_value(value: Any, annotation: Any, siblings: Mapping[str, Any], kind: Kind, path: str) -> Problems:
    mark = _mark(annotation)
    if value == "???":
        return
    if isinstance(mark, Slot):
        yield from check_spec(value, mark.group, path)
    elif isinstance(mark, Overlays):
        yield from _check_exceptions(value, mark.of, siblings, kind, path)
    elif isinstance(mark, Alternatives):
        yield from _check_alternatives(value, kind.fields[mark.of], siblings, kind, path)
    elif isinstance(mark, Chosen):
        names = siblings.get(mark.among) or {}
        if value not in names:
            yield path, f"no '{value}' among {mark.among}{did_you_mean(str(value), names)}; there are {listing(names)}"
    elif get_origin(annotation) in (Union, types.UnionType):
        yield from _check_union(value, get_args(annotation), siblings, kind, path)
    elif get_origin(annotation) in (list, tuple) and isinstance(value, (list, tuple)) and _holds_slot(annotation):
        for number, item in enumerate(value):
            yield from _check_value(item, get_args(annotation)[0], siblings, kind, f"{path}.{number}")
    elif get_origin(annotation) is dict and _holds_slot(annotation) and isinstance(value, Mapping):
        for name, item in value.items():
            yield from _check_value(item, get_args(annotation)[1], siblings, kind, join(path, str(name)))
    else:
        yield from _check_leaf(value, annotation, path)


def _check_union(value: Any, options: tuple[Any, ...], siblings: Mapping[str, Any], kind: Kind, path: str) -> Problems:
    if value is None and type(None) in options:
        return
    slots = [o for o in options if isinstance(_mark(o), Slot)]
    picks = [o for o in options if isinstance(_mark(o), Chosen)]
    lists = [o for o in options if get_origin(o) is list and _holds_slot(o)]
    marked = [o for o in options if isinstance(_mark(o), (Overlays, Alternatives))]
    if marked:
        yield from _check_value(value, marked[0], siblings, kind, path)
    elif slots and isinstance(value, Mapping):
        yield from _check_value(value, slots[0], siblings, kind, path)
    elif picks and isinstance(value, str):
        yield from _check_value(value, picks[0], siblings, kind, path)
    elif lists and isinstance(value, list):
        yield from _check_value(value, lists[0], siblings, kind, path)
    else:
        plain = [o for o in options if o not in slots and o not in picks and o not in lists and o is not type(None)]
        if plain:
            yield from _check_leaf(value, Union[tuple(plain)], path)  # noqa: UP007
        else:
            yield from _check_value(value, (slots or picks or lists)[0], siblings, kind, path)


def _check_exceptions(value: Any, of: str, siblings: Mapping[str, Any], kind: Kind, path: str) -> Problems:
    if not isinstance(value, (list, tuple)):
        yield path, f"a list of exceptions, each with 'layers', not {value!r}"
        return
    base, depth = siblings.get(of), siblings.get("depth")
    known = {text for _, text in _check_value(base, kind.fields[of].annotation, siblings, kind, path)}
    for number, item in enumerate(value):
        here = f"{path}.{number}"
        if not isinstance(item, Mapping) or "layers" not in item:
            yield here, "'layers' is missing: a slice such as '3::4' or a list of layer numbers"
            continue
        if isinstance(depth, int) and depth > 0:
            try:
                select(item["layers"], depth)
            except SpecError as error:
                yield join(here, "layers"), str(error)
        change = {key: change for key, change in item.items() if key != "layers"}
        for where, text in _check_value(merge(base, change), kind.fields[of].annotation, siblings, kind, here):
            if text not in known:  # said once, where the layer itself states it
                yield where, text


def _check_alternatives(value: Any, of: Field, siblings: Mapping[str, Any], kind: Kind, path: str) -> Problems:
    if not isinstance(value, Mapping):
        yield path, f"a mapping of names to alternatives, not {value!r}"
        return
    for name, item in value.items():
        yield from _check_value(item, of.annotation, siblings, kind, join(path, str(name)))


def _check_leaf(value: Any, annotation: Any, path: str) -> Problems:
    if isinstance(value, str) and value.startswith("${"):
        return  # an interpolation not resolved yet; it is checked again once it is
    try:
        _adapter(annotation).validate_python(_as_tuple(value, annotation), strict=True)
    except ValidationError as error:
        said = LENGTH if Interval in (annotation, *get_args(annotation)) else _phrase(error.errors()[0]["msg"])
        yield path, f"{value!r} is not allowed: {said}{_near(value, annotation)}"


def _phrase(message: str) -> str:
    return message.replace("Input should", "it should").replace("Value error, ", "")


def _near(value: Any, annotation: Any) -> str:
    options = [a for a in get_args(annotation) if isinstance(a, str)]
    return did_you_mean(value, options) if isinstance(value, str) else ""


def _as_tuple(value: Any, annotation: Any) -> Any:
    """YAML has lists only; a field that is a tuple takes them."""
    wants = annotation if get_origin(annotation) is tuple else None
    for option in get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ():
        wants = option if get_origin(option) is tuple else wants
    return tuple(value) if wants is not None and isinstance(value, list) else value


def _mark(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        for extra in get_args(annotation)[1:]:
            if isinstance(extra, (Slot, Overlays, Alternatives, Chosen)):
                return extra
    return None


def _holds_slot(annotation: Any) -> bool:
    """Whether this is `list[Child[...]]` or `dict[str, Child[...]]`."""
    return bool(get_args(annotation)) and isinstance(_mark(get_args(annotation)[-1]), Slot)


@lru_cache(maxsize=512)
def _adapter_by_text(text: str, annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return _adapter_by_text(str(annotation), annotation)
