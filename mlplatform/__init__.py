"""mlplatform: every model is a YAML file, every run an override. `import mlplatform as mp` imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlplatform.api import build, compose, load, load_processor, save

__all__ = ["build", "compose", "load", "load_processor", "save"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import mlplatform.api

        return getattr(mlplatform.api, name)
    raise AttributeError(f"module 'mlplatform' has no attribute {name!r}")
