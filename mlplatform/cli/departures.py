"""A model changed beyond what its family's config.json can say is no member of that family in Hugging Face's files.

`block/mlp@model.trunk.layer.mlp=moe` makes a Llama with experts. Written as `model_type: llama` it would load as
another model, without a murmur. So what departs is found by comparing with the YAML as it stands, and such a model
loses its `hf` map: its runs load here as ever, and saving it for Hugging Face is an error that names the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlplatform.cli.compose import compose_model
from mlplatform.cli.origins import MISSING, is_leaf, walk
from mlplatform.errors import listing

SILENT = ("hf", "init")
"""Parts of a model that say nothing about what a forward pass computes."""


def told_apart(model: dict[str, Any], name: str | None, config_dirs: Iterable[str | Path] = ()) -> dict[str, Any]:
    """Return the model's spec, its `hf` cut down to the reason when it departs from what `hf` can say.

    Args:
        name: the option of the group `model` it was composed from; None when it came from none.
    """
    hf = model.get("hf") or {}
    if name is None or not ("weights" in hf or "parts" in hf):
        return model
    found = departures(compose_model(name, (), config_dirs).config, model)
    if not found:
        return model
    reason = f"{listing(found, 3)}: {hf.get('model_type')}'s config.json has no word for it"
    return {**model, "hf": {"departs": reason}}


def departures(base: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    """Return `path=value` of every change that no rule of `hf.config` writes, but of what changes nothing.

    That is dropout, initial values, and the `context_length` of a tower that reads no tokens: the positions of an
    image or a recording follow from its own numbers, such as `image_size` and `patch`.
    """
    said = _mapped(model)
    before, after = _leaves(base), _leaves(model)
    found = []
    for path in dict.fromkeys((*before, *after)):
        part, inner = _within(model, path)
        own = f"{part}{inner}"
        top, last = inner.split(".")[0], inner.rpartition(".")[2]
        if (
            before.get(path, MISSING) == after.get(path, MISSING)
            or top in SILENT
            or last == "dropout"
            or inner == "head"
            or (last == "context_length" and f"{path.rpartition('.')[0]}.input.vocab" not in after)
        ):
            continue
        if top == "heads" or any(own == rule or own.startswith(f"{rule}.") for rule in said):
            continue
        found.append(f"{path}={after[path]!r}" if path in after else f"no {path}")
    return found


def _within(model: Mapping[str, Any], path: str) -> tuple[str, str]:
    """Return the nested model a path lies in (`language.`), and the rest, with `head` for the chosen one of `heads`."""
    first, _, rest = path.partition(".")
    if rest and first in ((model.get("hf") or {}).get("parts") or {}):
        inner, own = _within(model[first], rest)
        return f"{first}.{inner}", own
    head = model.get("head")
    return "", path.replace(f"heads.{head}.", "head.", 1) if isinstance(head, str) else path


def _mapped(model: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Return the paths `hf.config` writes, those of nested models with theirs."""
    from mlplatform.interop.config_map import ConfigMap

    hf, head = model.get("hf") or {}, model.get("head")
    paths = {f"{prefix}{rule.path}" for rule in ConfigMap(hf, head if isinstance(head, str) else None).rules}
    for part in hf.get("parts") or {}:
        paths |= _mapped(model[part], f"{prefix}{part}.")
    return paths


def _leaves(model: Mapping[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in walk(model) if is_leaf(value)}
