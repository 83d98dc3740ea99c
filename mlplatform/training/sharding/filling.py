"""A model on the meta device made in ZeRO's pieces: no rank holds more of it than its pieces and one module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mlplatform.training.sharding import flat
from mlplatform.training.sharding.holding import OwnParts

ONE = {"train_micro_batch_size_per_gpu": 1, "steps_per_print": 2**31}
"""What DeepSpeed wants to be told and what we count ourselves."""


def make_in_pieces(model: Any, offload: bool) -> None:
    """Give a model memory for this rank's pieces of its weights, and then their values.

    Args:
        offload: the pieces lie in main memory.
    """
    from deepspeed.runtime.zero import Init

    engine = Init(module=nn.Module(), remote_device="cpu" if offload else None)
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                made[p] = module._parameters[name] = made[p] if p in made else _in_pieces(p, engine)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=engine.local_device)
    model.first_values.fill(model, OwnPieces(model))
    del model.first_values  # and the files it reads


def answering(model: nn.Module, options: Mapping[str, Any]) -> Any:
    """Return DeepSpeed's engine of a model in pieces that never trains: its layers are gathered as they compute."""
    import deepspeed

    return deepspeed.initialize(model=model, config={"zero_optimization": dict(options), **ONE})[0]


def _in_pieces(parameter: Any, engine: Any) -> nn.Parameter:
    """Return a parameter of the same shape in pieces, without values."""
    memory = torch.empty(parameter.shape, dtype=parameter.dtype, device=engine.local_device)
    made: Any = nn.Parameter(memory, requires_grad=parameter.requires_grad)
    if hasattr(parameter, "scalar"):
        made.scalar = True
    engine._convert_to_deepspeed_param(made)
    made.partition()
    return made


def convert(parameter: Any, dtype: torch.dtype) -> None:
    """Turn a parameter in pieces into another type."""
    before = parameter.ds_tensor
    piece: Any = before.to(dtype)
    piece.ds_numel, piece.status, piece.final_location = before.ds_numel, before.status, before.final_location
    parameter.data, parameter.ds_tensor = parameter.data.to(dtype), piece


class OwnPieces(OwnParts):
    """This rank's pieces of a model (models/start.py's Holder)."""

    def shape(self, parameter: nn.Parameter) -> torch.Size:
        """Return the shape of a whole parameter."""
        return flat.shape(parameter)

    def keep(self, parameter: nn.Parameter, whole: Tensor) -> None:
        """Keep this rank's piece of a parameter."""
        own, start = flat.computed(parameter)
        own.copy_(whole.flatten()[start : start + own.numel()])

    def put(self, name: str, whole: Tensor) -> None:
        """Keep this rank's piece of a parameter, or a buffer."""
        own = self._named(name)
        if isinstance(own, nn.Parameter):
            self.keep(own, whole)
        else:
            own.copy_(whole)

    def whole(self, name: str) -> Tensor:
        """Gather a parameter."""
        own = self._named(name)
        return flat.whole(own, flat.computed(own)).view(flat.shape(own)).cpu()
