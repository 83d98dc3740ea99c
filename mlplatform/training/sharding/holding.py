"""Memory for a model that was divided on the meta device: each rank fills its own parts, module by module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mlplatform.models.share import gathered
from mlplatform.training.sharding.parts import part_of


class OwnParts:
    """This rank's parts of a model (models/start.py's Holder)."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @contextlib.contextmanager
    def lend(self, module: nn.Module, deep: bool) -> Iterator[None]:
        """Put whole parameters in the places of the divided ones, all on the CPU, whose random numbers all draw."""
        lent = []
        for holder in module.modules() if deep else [module]:
            for name, parameter in holder._parameters.items():
                if parameter is not None:
                    memory = torch.empty(self.shape(parameter), dtype=parameter.dtype, device="cpu")
                    holder._parameters[name] = nn.Parameter(memory)
                    lent.append((holder, name, parameter))
        yield
        for holder, name, parameter in lent:
            whole: Any = holder._parameters[name]
            holder._parameters[name] = parameter
            self.keep(parameter, whole.detach())

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        """Return the shape of a whole parameter."""
        return parameter.shape

    def keep(self, parameter: nn.Parameter, whole: Tensor) -> None:
        """Keep this rank's part of a parameter."""
        keep(parameter.detach(), whole)

    def put(self, name: str, whole: Tensor) -> None:
        """Keep this rank's part of a tensor."""
        keep(self._named(name).detach(), whole)

    def whole(self, name: str) -> Tensor:
        """Gather a parameter."""
        return gathered(self._named(name).detach()).cpu()

    def _named(self, name: str) -> Any:
        path, _, last = name.rpartition(".")
        return getattr(self.model.get_submodule(path), last)


def keep(own: Tensor, whole: Tensor) -> None:
    """Copy this rank's part of a whole tensor into what it holds of it."""
    held(own).copy_(held(part_of(own, whole)))


def held(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
