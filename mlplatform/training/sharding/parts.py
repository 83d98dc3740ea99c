"""This rank's part of a tensor that is divided over a mesh."""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor


def part_of(parameter: Tensor, whole: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor, divided as the parameter is.

    Layers were divided first, along the last dimension of the mesh, and shards cut from what that left.
    """
    if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
        return whole
    mesh, local = parameter.device_mesh, whole
    for i, place in reversed(list(enumerate(parameter.placements))):
        if hasattr(place, "dim"):
            local = _chunk(local, mesh.size(i), mesh.get_local_rank(i), place.dim)  # type: ignore[attr-defined]
    own = parameter.to_local()
    local = local.to(own.device).clone().view_as(own)
    return DTensor.from_local(
        local, mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def _chunk(tensor: Tensor, count: int, number: int, dim: int) -> Tensor:
    """Return one of `count` parts, as torch.chunk cuts them; the last ones may be empty."""
    size = -(-tensor.shape[dim] // count)
    start = min(number * size, tensor.shape[dim])
    return tensor.narrow(dim, start, min(size, tensor.shape[dim] - start))
