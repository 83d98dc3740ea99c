"""Muon on matrices that are divided among ranks. https://kellerjordan.github.io/posts/muon/"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.optim._muon import muon

from mlplatform.training.sharding.parts import part_of


class Muon(torch.optim.Muon):
    """torch's, which makes the update of a divided matrix from the whole of it. Its momentum stays divided.

    Each rank gathers gradient and momentum, works out the same update and takes its part: what one process does.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step."""
        divided = {}
        for group in self.param_groups:
            for p in group["params"]:
                if isinstance(p.grad, DTensor):
                    self._divided_step(p, p.grad, group)
                    divided[p], p.grad = p.grad, None  # torch's own step passes it by
        loss = super().step(closure)
        for p, gradient in divided.items():
            p.grad = gradient
        return loss

    def _divided_step(self, parameter: Any, gradient: DTensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum: DTensor = state["momentum_buffer"]
        whole = gradient.full_tensor()
        update = torch.zeros_like(whole)  # a step from zeros without decay leaves the update itself
        options = {name: value for name, value in group.items() if name in self.defaults}
        muon([update], [whole], [momentum.full_tensor()], **{**options, "weight_decay": 0.0}, has_complex=False)
        momentum.lerp_(gradient, 1 - group["momentum"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(part_of(parameter, update))
