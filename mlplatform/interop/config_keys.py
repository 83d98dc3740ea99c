"""Dotted keys of a config.json: `text_config.hidden_size` is a key within a nested config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def look(config: Mapping[str, Any], key: str) -> tuple[bool, Any]:
    """Return (whether the key is there, its value)."""
    if key in config:
        return True, config[key]
    head, _, rest = key.partition(".")
    inner = config.get(head)
    return look(inner, rest) if rest and isinstance(inner, Mapping) else (False, None)


def assign(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a key, making the nested configs on its way."""
    head, _, rest = key.partition(".")
    if rest:
        if not isinstance(config.get(head), dict):
            config[head] = {}
        assign(config[head], rest, value)
    else:
        config[head] = value


def remove(config: dict[str, Any], key: str) -> None:
    """Delete a key, and the nested configs it leaves empty."""
    head, _, rest = key.partition(".")
    if key in config:
        del config[key]
    elif rest and isinstance(config.get(head), dict):
        remove(config[head], rest)
        if not config[head]:
            del config[head]


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config whose keys are the dotted ones given."""
    result: dict[str, Any] = {}
    for key, value in flat.items():
        assign(result, key, value)
    return result


def unknown(
    config: Mapping[str, Any], is_known: Callable[[str], bool], known: set[str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every key that nothing names; a nested config is entered where a key lies in it."""
    for key, value in config.items():
        path = f"{prefix}{key}"
        if is_known(path):
            continue
        if isinstance(value, Mapping) and any(k.startswith(f"{path}.") for k in known):
            yield from unknown(value, is_known, known, f"{path}.")
        else:
            yield path, value
