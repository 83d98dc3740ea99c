"""A model's `hf:` with those of the models nested in it: one config map tree, one list of weight rules.

`hf.parts` says for each nested model which key of config.json is its config and what its tensors' names start with:

    parts: {language: {config: text_config, weights: "language_model."}, vision: {...}}

`flat: {inner key: outer key or an operator of hf.config}` makes the nested config where a file has none.

Several starts in a list are dialects. A start may tell the nested model's body, whose names begin with its own
`hf.base_prefix`, from its head: `weights: {body: "model.language_model.", rest: ""}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from mlplatform.errors import CheckpointError, listing
from mlplatform.interop.config_keys import assign, look
from mlplatform.interop.config_map import ConfigMap
from mlplatform.interop.config_rules import value_rule
from mlplatform.interop.templates import spread

Find = Callable[[Mapping[str, Any]], dict[str, Any]]
Start = Callable[[str], str]


def head_name(spec: Mapping[str, Any]) -> str | None:
    """Return the name of the chosen head, or None when the model has no named heads."""
    head = spec.get("head")
    return head if isinstance(head, str) else None


def head_of(config: Mapping[str, Any], family: Mapping[str, Any], asked: str | None) -> str | None:
    """Return the head to build: the one asked for, else the one `architectures` names, else the YAML's own."""
    heads = family.get("heads") or {}
    if asked is not None:
        if asked not in heads:
            raise CheckpointError(f"head={asked!r}: this model's YAML has {listing(heads)}")
        return asked
    named = (config.get("architectures") or [None])[0]
    known = (family.get("hf") or {}).get("architectures") or {}
    if named is None or not known:
        return head_name(family)
    if named not in known:
        raise CheckpointError(
            f"config.json says architectures={named!r}; the YAML can say {listing(known)}; pass head="
        )
    return known[named]


def read_config(config: Mapping[str, Any], family: Mapping[str, Any], head: str | None, find: Find) -> dict[str, Any]:
    """Return the spec for a config.json, nested models included."""
    hf = family.get("hf") or {}
    spec = ConfigMap(hf, head).read(config, family)
    for name, part in (hf.get("parts") or {}).items():
        inner = inner_config(config, part, hf)
        nested = spec[name]  # with what this config says of it
        if inner.get("model_type", nested["hf"]["model_type"]) != nested["hf"]["model_type"]:
            nested = {**find(inner), "head": nested.get("head")}
        chosen = part.get("head", head_name(nested))
        spec[name] = read_config({"architectures": None, **inner}, nested, chosen, find)
    return spec


def inner_config(config: Mapping[str, Any], part: Mapping[str, Any], hf: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part's config, made of the outer one's keys that `flat` names where the file has none."""
    inner = look(config, part["config"])[1]
    if inner is None:
        rules = [value_rule(key, right, set()) for key, right in (part.get("flat") or {}).items()]
        said = {**(hf.get("defaults") or {}), **config}
        inner = {rule.path: rule.read(partial(look, said), None) for rule in rules}
    return dict(inner)


def write_config(spec: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of a spec; `kept` is what the file it was read from said beside the mapped keys."""
    hf = spec.get("hf") or {}
    config = ConfigMap(hf, head_name(spec)).write(spec, {k: v for k, v in kept.items() if k != "parts"})
    for name, part in (hf.get("parts") or {}).items():
        assign(config, part["config"], write_config(spec[name], (kept.get("parts") or {}).get(name) or {}))
    config["model_type"] = hf.get("model_type")
    return config


def kept_of(config: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what no rule reads of a config.json and of those nested in it."""
    hf = spec.get("hf") or {}
    kept = ConfigMap(hf, head_name(spec)).kept(config)
    parts = hf.get("parts") or {}
    if parts:
        kept["parts"] = {n: kept_of(look(config, p["config"])[1] or {}, spec[n]) for n, p in parts.items()}
    return kept


def weight_rules(spec: Mapping[str, Any], bare: bool, every_head: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (ours, theirs) of the body, the chosen head (or every head), and the nested models.

    Args:
        bare: theirs is a file of the bare model, whose names lack `hf.base_prefix`.
    """
    hf = spec.get("hf") or {}
    prefix, own_prefix = hf.get("base_prefix", ""), "" if bare else base_prefix(spec)
    heads = hf.get("heads") or {}

    def moved(name: str) -> str:
        return own_prefix + name.removeprefix(prefix) if name.startswith(prefix) else name

    chosen = list(heads.values()) if every_head else [heads.get(head_name(spec)) or {}]
    for section in (hf, *chosen):
        for left, right in ((section or {}).get("weights") or {}).items():
            if right is not None:  # null takes an inherited rule away
                yield left, _renamed(right, moved)
    for name, part in (hf.get("parts") or {}).items():
        inner_bare = bool(part.get("bare"))
        for left, right in weight_rules(spec[name], inner_bare, every_head):
            for own in spread(left) if not isinstance(right, Mapping) else [left]:
                index = spread(left).index(own) if own != left else None
                yield f"{name}.{own}", _renamed(_prefixed(right, _starts(part, spec[name]), index), moved)


def base_prefix(spec: Mapping[str, Any]) -> str:
    """Return what the body's tensor names start with; a head may have another one than `hf.base_prefix`."""
    hf = spec.get("hf") or {}
    head = (hf.get("heads") or {}).get(head_name(spec)) or {}
    return head.get("base_prefix", hf.get("base_prefix", ""))


def ignored_weights(spec: Mapping[str, Any]) -> list[str]:
    """Return the patterns (`*` for anything) of their tensors that have no place with us."""
    hf = spec.get("hf") or {}
    head = (hf.get("heads") or {}).get(head_name(spec)) or {}
    own = [*(hf.get("ignore_weights") or []), *(head.get("ignore_weights") or [])]
    for name, part in (hf.get("parts") or {}).items():
        for start in _starts(part, spec[name]):
            own += [start(pattern) for pattern in ignored_weights(spec[name])]
    return own


def tied_weights(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return theirs -> theirs for tensors some files hold twice: the copy and what it is tied to."""
    hf = spec.get("hf") or {}
    own = dict(hf.get("tied") or {})
    for name, part in (hf.get("parts") or {}).items():
        for start in _starts(part, spec[name]):
            own |= {start(copy): start(source) for copy, source in tied_weights(spec[name]).items()}
    return own


def _starts(part: Mapping[str, Any], inner: Mapping[str, Any]) -> list[Start]:
    """Return what the nested model's names become, one function for each dialect."""
    told, prefix = part.get("weights", ""), (inner.get("hf") or {}).get("base_prefix", "")

    def placed(start: Any, name: str) -> str:
        if isinstance(start, str):
            return start + name
        own = prefix and name.startswith(prefix)
        return start["body"] + name.removeprefix(prefix) if own else start["rest"] + name

    return [partial(placed, start) for start in (told if isinstance(told, list) else [told])]


def _renamed(right: Any, change: Callable[[str], str]) -> Any:
    if isinstance(right, str):
        return change(right)
    if isinstance(right, Mapping):
        return {k: _renamed(v, change) if k in _NAMED else v for k, v in right.items()}
    return right if isinstance(right, bool) else [_renamed(item, change) for item in right]


_NAMED = ("fused", "stacked", "reshaped", "transposed")


def _prefixed(right: Any, starts: list[Start], index: int | None) -> Any:
    if isinstance(right, Mapping):
        return {
            k: _options([start(name) for name in ([v] if isinstance(v, str) else v) for start in starts])
            if k in _NAMED and not isinstance(v, bool)
            else v
            for k, v in right.items()
        }
    names = [right] if isinstance(right, str) else list(right)
    if index is not None:
        names = [spread(name)[index] for name in names]
    return _options([start(name) for start in starts for name in names])


def _options(names: list[str]) -> Any:
    return names[0] if len(names) == 1 else names
