"""Where the values of a model come from that has no memory yet: drawn, or read from files.

A process may hold but a part of each parameter. Values are then made or read one module at a time, its part is kept,
and the rest let go: they are those one process would have, and no more is in memory than the parts and one module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mlplatform.models.building import build
from mlplatform.models.init import initialise
from mlplatform.registry import Spec


class Holder(Protocol):
    """The memory of a model whose parameters may be divided among processes."""

    def lend(self, module: nn.Module, deep: bool) -> AbstractContextManager[None]:
        """Within, a module's own parameters (or also those of its parts) are whole; this process's part is kept."""
        ...

    def put(self, name: str, whole: Tensor) -> None:
        """Keep this process's part of a parameter or buffer."""
        ...

    def whole(self, name: str) -> Tensor:
        """Return all of a parameter, on the CPU; every process asks for it at once."""
        ...


class Start(Protocol):
    """Gives a model that has memory its first values."""

    def fill(self, model: nn.Module, holder: Holder) -> None: ...


class Drawn:
    """The initial values its YAML says."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fill(self, model: nn.Module, holder: Holder) -> None:
        """Draw them."""
        draw(model, holder, "", self.seed)


class Read:
    """Values of files.

    Args:
        tensors: returns each with its name; one is let go before the next is read.
        fresh: parts of the model that are not there and are drawn, with the seed of each.
    """

    def __init__(self, tensors: Callable[[], Iterable[tuple[str, Tensor]]], fresh: Mapping[str, int]) -> None:
        self.tensors, self.fresh = tensors, fresh

    @torch.no_grad()
    def fill(self, model: nn.Module, holder: Holder) -> None:
        """Read them."""
        for name, tensor in self.tensors():
            holder.put(name, tensor)
        for part, seed in self.fresh.items():
            draw(model, holder, part, seed)
        for module in model.modules():
            if hasattr(module, "restore_buffers"):  # tables that are in no file
                module.restore_buffers()  # type: ignore[operator]


class Over:
    """Values of files over those of another start: parts that begin as other models' do.

    Args:
        tensors: as of `Read`.
    """

    def __init__(self, below: Start, tensors: Callable[[], Iterable[tuple[str, Tensor]]]) -> None:
        self.below, self.tensors = below, tensors

    @torch.no_grad()
    def fill(self, model: nn.Module, holder: Holder) -> None:
        """Read them."""
        self.below.fill(model, holder)
        for name, tensor in self.tensors():
            holder.put(name, tensor)


def draw(model: Any, holder: Holder, under: str, seed: int) -> None:
    """Draw the initial values of a part of a model; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        initialise(model, Spec(model.spec, "", "model"), under, holder.lend)


def later(spec: Mapping[str, Any] | Spec, start: Start) -> nn.Module:
    """Return the model a spec describes on the meta device, for whoever gives it memory to fill."""
    model = build(spec, device="meta")
    model.first_values = start  # type: ignore[assignment]
    return model
