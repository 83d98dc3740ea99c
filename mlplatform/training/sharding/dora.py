"""DoRA on a map that ranks divide (arXiv:2402.09353): each knows the lengths of the rows it writes.

peft's own forward pass mixes whole tensors and parts, so this one stands in its place.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from mlplatform.training.sharding.holding import held


def divide_directions(layer: Any, how: str, mesh: DeviceMesh) -> None:
    """Let the magnitudes of one of peft's layers, whose map is divided by `columns` or `rows`, go with the map.

    By columns each rank keeps those of its rows; by rows all keep all, and what a row is long is summed over ranks.
    """
    for dora in layer.lora_magnitude_vector.values():
        if how != "rows":
            own = distribute_tensor(dora.weight, mesh, [Shard(0)], src_data_rank=None)
            dora.weight = nn.Parameter(own, requires_grad=dora.weight.requires_grad)
        dora.mesh = mesh if how == "rows" else None
        dora.forward = MethodType(_added, dora)


def _added(
    dora: Any, x: Tensor, *, lora_A: Any, lora_B: Any, scaling: float, base_layer: Any,
    base_result: Tensor | None = None, adapter_name: str = "",
) -> Tensor:  # fmt: skip
    """What an adapter adds: (r - 1) Wx + r BAx, r = m / |W + BA|, with |.| the lengths of rows, without a gradient."""
    with torch.no_grad():
        added = (held(lora_B.weight) @ held(lora_A.weight)).to(x.dtype)
        lengths = torch.linalg.norm(held(base_layer.weight).to(x.dtype) + scaling * added, dim=1)
        if dora.mesh is not None:
            squares = DTensor.from_local(lengths.square(), dora.mesh, [Partial()], run_check=False)
            lengths = squares.redistribute(placements=[Replicate()]).to_local().sqrt()
    ratio = held(dora.weight) / lengths
    written = base_layer(x) if base_result is None else base_result
    if base_layer.bias is not None:
        written = written - held(base_layer.bias)
    return (ratio - 1) * written + ratio * lora_B(lora_A(x)) * scaling
