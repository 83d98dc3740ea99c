"""How the ranks of a run share its work: which part of each batch is one's own, and which part of each weight."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Share:
    """Every rank reads a part of each batch and holds all weights: one process, and data-parallel ranks.

    Args:
        number, count: which reader of a batch this process is, and how many there are.

    Attributes:
        group: the process group of the readers, None for all ranks. Ranks that divide one layer among them read the
            same part, so only one of them is in it.
    """

    divides = False
    """Whether a rank holds but a part of the model, so that none can run it alone."""
    clips = True
    """Whether `clip` does; else an engine clips within its step, and `norm` says afterwards what there was."""

    def __init__(self, number: int = 0, count: int = 1) -> None:
        self.number, self.count = number, count
        self.group: Any = None

    def divide(self, model: nn.Module) -> None:
        """Leave this rank its part of a model; called once, before there is an optimizer."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all readers."""
        if self.count > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def settle(self, model: nn.Module) -> None:
        """Let go of what forward passes gathered that no backward pass followed."""

    def complete(self, model: nn.Module) -> None:
        """Finish the gradients of a step that no engine finishes by itself."""

    def clip(self, parameters: list[nn.Parameter], limit: float | None) -> Tensor | None:
        """Scale the gradients down to a norm, None for any; return the norm they had, of all ranks' parts together.

        None where an engine clips as it steps; `norm` says it afterwards.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = total_norm(gradients)
        if limit is not None:
            torch._foreach_mul_([_local(g) for g in gradients], torch.clamp(limit / (norm + 1e-6), max=1.0))
        return norm

    def norm(self) -> Tensor:
        """Return the norm of the last step's gradient, where `clip` could not."""
        raise NotImplementedError

    def changed(self, parameter: nn.Parameter) -> None:
        """Take note of a weight that its block has changed by itself."""

    def held(self, parameter: nn.Parameter) -> Tensor:
        """Return what this rank holds of a parameter, as its optimizer steps it."""
        return parameter.detach()

    def whole(self, tensor: Any) -> Tensor:
        """Return all of a parameter or buffer; all ranks call it."""
        return gathered(tensor.detach())

    def part(self, parameter: nn.Parameter, stored: Any) -> Tensor:
        """Return this rank's part of a tensor that a checkpoint holds, divided as the parameter is."""
        return stored.to(self.held(parameter).device)

    def written(self, parameter: nn.Parameter, part: Tensor) -> Any:
        """Return what this rank writes of a tensor that is divided as the parameter is. All ranks call it."""
        return part

    @contextlib.contextmanager
    def exchanged(self, values: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
        """Within, the model computes with other values, of which each rank gives its part. All ranks call it."""
        held = [(self.held(p), value) for p, value in values.items()]
        kept = [own.clone() for own, _ in held]
        try:
            for own, value in held:
                own.copy_(value)
            yield
        finally:
            for (own, _), before in zip(held, kept, strict=True):
                own.copy_(before)

    def shape(self, parameter: Tensor) -> torch.Size:
        """Return the shape of a whole parameter."""
        return parameter.shape


def gathered(tensor: Any) -> Tensor:
    """Return all of a tensor, which may be divided among ranks: all of them call it."""
    if not hasattr(tensor, "full_tensor"):
        return tensor
    return tensor.to(tensor.device_mesh.device_type).full_tensor()  # what lies in main memory is sent from the device


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Return the norm of all gradients together; those that are divided among ranks (DTensors) are summed over them.

    `torch.nn.utils.get_total_norm` refuses tensors of several meshes, and of none.
    """
    shards: dict[tuple[Any, ...], list[Tensor]] = {}
    for gradient in gradients:
        shards.setdefault(_groups(gradient), []).append(_local(gradient))
    squares = []
    for groups, parts in shards.items():
        square = torch.nn.utils.get_total_norm(parts).square()
        for group in groups:
            dist.all_reduce(square, group=group)
        squares.append(square)
    if len(squares) == 1:
        return squares[0].sqrt()
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _groups(tensor: Any) -> tuple[Any, ...]:
    """Return the process groups among which a tensor is divided."""
    places = getattr(tensor, "placements", ())
    return tuple(tensor.device_mesh.get_group(i) for i, place in enumerate(places) if hasattr(place, "dim"))
