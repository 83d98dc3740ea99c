"""Keeps secrets out of what is written and shown: config.yaml, trackers, reports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

MASK = "***"
KEYS = re.compile(r"(^|_)(token|secret|password|passwd|api_?key|access_?key|credentials?|auth)($|_)", re.IGNORECASE)
SHAPES = re.compile(
    r"^(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}|xox[abpr]-[\w-]{10,}"
    r"|glpat-[\w-]{16,}|AIza[\w-]{30,}|[0-9a-f]{40}|[0-9a-f]{64}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})$"
)
"""Tokens of well-known services, W&B's 40 hex digits, and JSON web tokens."""


def masked(config: Mapping[str, Any], from_environment: Iterable[str] = ()) -> tuple[dict[str, Any], list[str]]:
    """Return (the config with secrets as `***`, the dotted paths that were masked).

    A value is one when its key is called so, when it looks like one, or when it came from the environment.
    """
    hidden: list[str] = []
    outside = set(from_environment)

    def walk(value: Any, path: str, key: str) -> Any:
        if isinstance(value, Mapping):
            return {k: walk(v, f"{path}.{k}" if path else str(k), str(k)) for k, v in value.items()}
        if isinstance(value, list):
            return [walk(v, f"{path}.{i}", key) for i, v in enumerate(value)]
        secret = isinstance(value, str) and (bool(KEYS.search(key)) or bool(SHAPES.match(value)))
        if value not in (None, "") and (secret or path in outside):
            hidden.append(path)
            return MASK
        return value

    return walk(config, "", ""), hidden
