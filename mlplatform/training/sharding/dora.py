"""DoRA on a map that ranks divide (arXiv:2402.09353): each knows the lengths of the rows it writes.

peft's own forward pass mixes whole tensors and parts, so this one stands in its place.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from mlplatform.training.sharding.holding import held


def divide_directions(layer: Any, how: str, mesh: DeviceMesh) -> None:
    """Let the magnitudes of one of peft's layers, whose map is divided by `columns` or `rows`, go with the map.

    By columns each rank keeps those of its rows; by rows all keep all, and what a row is long is summed over ranks.
    """
    for dora in layer.lora_magnitude_vector.values():
        if how != "rows":
            own = distribute_tensor(dora.weight, mesh, [Shard(0)], src_data_rank=None)
            dora.weight = nn.Parameter(own, requires_grad=dora.weight.requires_grad)
        dora.forward = MethodType(_Divided(mesh if how == "rows" else None), dora)


class _Divided:
    """What an adapter adds: (r - 1) Wx + r BAx, with r = m / |W + BA| and |.| the lengths of rows, without a gradient.

    Args:
        mesh: of the ranks that hold a part of every row, None where rows are whole.
    """

    def __init__(self, mesh: DeviceMesh | None) -> None:
        self.mesh = mesh

    def __call__(
        self, dora: Any, x: Tensor, *, lora_A: Any, lora_B: Any, scaling: float, base_layer: Any,
        base_result: Tensor | None = None, adapter_name: str = "",
    ) -> Tensor:  # fmt: skip
        with torch.no_grad():
            added = (held(lora_B.weight) @ held(lora_A.weight)).to(x.dtype)
            lengths = torch.linalg.norm(held(base_layer.weight).to(x.dtype) + scaling * added, dim=1)
            if self.mesh is not None:
                squares = lengths.square()
                dist.all_reduce(squares, group=self.mesh.get_group())
                lengths = squares.sqrt()
        ratio = held(dora.weight) / lengths
        written = base_layer(x) if base_result is None else base_result
        if base_layer.bias is not None:
            written = written - held(base_layer.bias)
        return (ratio - 1) * written + ratio * lora_B(lora_A(x)) * scaling
