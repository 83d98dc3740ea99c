"""`_target_` nodes: classes of the outside world, from an allow-list, where an optimizer, logger or callback stands."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mlplatform.errors import SpecError

TARGET_GROUPS = {
    "optimizer": ("torch.optim.",),
    "logger": ("lightning.pytorch.loggers.",),
    "callback": ("lightning.pytorch.callbacks.",),
}


def check_target(data: Mapping[str, Any], group: str | None, path: str) -> Iterator[tuple[str, str]]:
    """Yield a problem when this `_target_` may not stand here. Imports nothing."""
    allowed = TARGET_GROUPS.get(group or "", ())
    name = data["_target_"]
    where = f"{path}._target_" if path else "_target_"
    if not allowed:
        yield where, f"'{name}' is not allowed here; name a registered kind under 'kind' instead"
    elif not isinstance(name, str) or not _listed(name, allowed):
        yield where, f"'{name}' is not allowed here; a {group} may come from {' or '.join(a + '*' for a in allowed)}"
    else:
        for key in data:
            if key.startswith("_") and key != "_target_":
                yield f"{path}.{key}", f"'{key}' is not allowed; a target takes plain arguments only"


def resolve_target(name: str, group: str, path: str) -> type:
    """Import and return the class a checked `_target_` names.

    The class must live where its name says it does: a path that reaches another module through an import
    (`torch.optim.os.system`) is refused.
    """
    allowed = TARGET_GROUPS.get(group, ())
    if not _listed(name, allowed):
        raise SpecError(problems=[(path, f"_target_ '{name}' is not allowed here")])
    module, _, attribute = name.rpartition(".")
    try:
        thing = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        raise SpecError(problems=[(path, f"_target_ '{name}' does not exist")]) from None
    if not inspect.isclass(thing) or not f"{thing.__module__}.".startswith(allowed):
        raise SpecError(problems=[(path, f"_target_ '{name}' is not a {group} class")])
    return thing


def _listed(name: str, allowed: tuple[str, ...]) -> bool:
    """Whether a name lies under an allowed prefix and ends like a class, which no function of a module reached does."""
    parts = name.split(".")
    return name.startswith(allowed) and all(part.isidentifier() for part in parts) and parts[-1][0].isupper()
