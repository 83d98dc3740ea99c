"""Which YAML a checkpoint's `model_type` belongs to."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mlplatform.errors import CheckpointError, listing
from mlplatform.interop.config_keys import look

OWN_TYPE = re.compile(r"^hf:(?:\n(?:[ #].*)?)*?\n  model_type: *['\"]?([\w.-]+)", re.MULTILINE)


def families(files: Iterable[Path]) -> dict[str, list[str]]:
    """Return model_type -> names of the YAMLs that state it themselves (named sizes inherit it), in file order."""
    found: dict[str, list[str]] = {}
    for file in files:
        if match := OWN_TYPE.search(file.read_text(encoding="utf-8")):
            names = found.setdefault(match.group(1), [])
            if file.stem not in names:
                names.append(file.stem)
    return found


def choose(
    config: Mapping[str, Any], known: Mapping[str, list[str]], compose: Callable[[str], dict[str, Any]]
) -> dict[str, Any]:
    """Return the composed spec of the YAML for a config.json.

    Where several YAMLs state the same model_type, `hf.when` (a value of theirs, or a list of them, for a key) says
    which is meant: the one with the most conditions, of those that hold.

    Raises:
        CheckpointError: no YAML states this model_type; the nearest are named.
    """
    kind = str(config.get("model_type"))
    if kind not in known:
        near = difflib.get_close_matches(str(kind), known, n=3, cutoff=0.4)
        hint = f"; the nearest are {listing(near)}" if near else ""
        raise CheckpointError(
            f"config.json says model_type={kind!r}; no YAML says so{hint}; there are {listing(sorted(known), 60)}; "
            "a YAML of your own in a folder given by config_dirs adds it"
        )
    specs = [compose(name) for name in known[kind]]
    fitting = [s for s in specs if all(_says(config, k, v) for k, v in (s["hf"].get("when") or {}).items())]
    return max(fitting or specs, key=lambda s: len(s["hf"].get("when") or {}))


def _says(config: Mapping[str, Any], key: str, wanted: Any) -> bool:
    value = look(config, key)[1]
    return value == wanted or (isinstance(wanted, list) and value in wanted)
