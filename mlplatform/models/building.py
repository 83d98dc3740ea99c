"""From a checked spec to a module: built on the meta device, then given memory and initial values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mlplatform.models.init import initialise
from mlplatform.registry import Spec


def build(
    spec: Mapping[str, Any] | Spec,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build the model a spec describes.

    Args:
        spec: a model's config tree (group `model`).
        device: where the parameters lie; `meta` builds the structure alone, at no cost in memory.
        dtype: of the parameters; fp32 when None.
        seed: of the initial values. The global random state is left as it was.

    Returns:
        The module; its `spec` attribute is the plain tree it was built from.

    Raises:
        SpecError: every problem of the spec, each with its path.
    """
    checked = Spec.of(spec, "model", "model")
    with torch.device("meta"), _Unfilled():
        model: nn.Module = checked.build()
    model.spec = checked.data  # type: ignore[assignment]
    if dtype is not None:
        model.to(dtype)
    if torch.device(device).type == "meta":
        return model
    model.to_empty(device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        initialise(model, checked)
    return model


class _Unfilled(TorchFunctionMode):
    """Leaves out the initial values torch's own modules take when they are made: a meta tensor has none.

    The first random fill of a meta tensor imports sympy and torch._dynamo, 1.1 s that `describe` and `load` don't have.
    """

    FILLS = (Tensor.normal_, Tensor.uniform_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.FILLS or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def initialise_module(
    model: nn.Module, name: str, device: torch.device, dtype: torch.dtype | None = None, seed: int = 0
) -> None:
    """Give one part of a model built on the meta device memory and initial values: a new head."""
    part = model.get_submodule(name)
    part.to_empty(device=device)
    if dtype is not None:
        part.to(dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        initialise(model, Spec(model.spec, "", "model"), under=name)  # type: ignore[arg-type]
