"""Merging of specs, and the per-layer exceptions of a stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlplatform.errors import SpecError


def merge(base: Any, over: Any) -> Any:
    """Lay `over` on `base`: mappings merge; another `kind` or `_target_` replaces, as all else does."""
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        return over
    if any(name in over and over[name] != base.get(name) for name in ("kind", "_target_")):
        return dict(over)
    merged = dict(base)
    for key, value in over.items():
        merged[key] = merge(base[key], value) if key in base else value
    return merged


def select(layers: str | int | Sequence[int], depth: int) -> list[int]:
    """Return the layer numbers a slice (`"3::4"`, `":2"`, `"-1:"`), a number or a list of numbers names.

    Raises SpecError for a number outside the stack or a text that is no slice.
    """
    if isinstance(layers, str):
        try:
            parts = [int(p) if p.strip() else None for p in layers.split(":")]
            if not 2 <= len(parts) <= 3:
                raise ValueError
            return list(range(depth))[slice(*parts)]
        except ValueError:
            raise SpecError(f"layers={layers!r} is no slice; write it as in Python, for example '3::4'") from None
    numbers: list[Any] = list(layers) if isinstance(layers, (list, tuple)) else [layers]
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool) or not -depth <= number < depth:
            raise SpecError(f"layers={layers!r}: there is no layer {number} among {depth}")
    return [number % depth for number in numbers]


def expand(layer: Mapping[str, Any], exceptions: Sequence[Mapping[str, Any]], depth: int) -> list[dict[str, Any]]:
    """Return the spec of each of `depth` layers, the exceptions merged over `layer` in order."""
    specs = [dict(layer) for _ in range(depth)]
    for exception in exceptions:
        change = {key: value for key, value in exception.items() if key != "layers"}
        for number in select(exception["layers"], depth):
            specs[number] = merge(specs[number], change)
    return specs
