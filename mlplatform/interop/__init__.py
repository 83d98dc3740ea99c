"""Hugging Face's files, both ways: config.json and safetensors <-> a YAML model.

What reads and writes tensors is imported on first use, so that the config map works without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlplatform.interop.families import choose, families
from mlplatform.interop.hub import fetch

if TYPE_CHECKING:
    from mlplatform.interop.loading import load
    from mlplatform.interop.saving import config_json, save

__all__ = ["choose", "config_json", "families", "fetch", "load", "save"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from mlplatform.interop.loading import load

        return load
    if name in ("config_json", "save"):
        from mlplatform.interop import saving

        return getattr(saving, name)
    raise AttributeError(f"module 'mlplatform.interop' has no attribute {name!r}")
