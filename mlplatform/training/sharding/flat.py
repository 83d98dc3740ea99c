"""Flat pieces, in which ZeRO's ranks hold the fp32 values of weights, their moments, and at stage 3 the weights too."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlplatform.training.shards import Piece


class Flat(NamedTuple):
    """What a rank holds of a flat tensor, none of it maybe: the engine's memory, and where in the tensor it begins."""

    values: Tensor
    start: int


def stepped(parameter: Any, key: str | None = None) -> Flat:
    """Return this rank's piece of a weight that trains, as it is stepped: in fp32; or of one of its moments."""
    if hasattr(parameter, "ds_id"):
        held = parameter._z3_optimizer
        piece, _ = held._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=key)
        return _without_padding(parameter, piece)
    mapping = parameter._hp_mapping
    if mapping is None:
        return Flat(torch.empty(0, device=parameter.device), 0)
    return Flat(mapping.get_hp_fragment(key), mapping.lp_fragment_address.start)


def computed(parameter: Any) -> Flat:
    """Return this rank's piece of a weight as the model computes with it, where it is in pieces."""
    return _without_padding(parameter, parameter.ds_tensor)


def _without_padding(parameter: Any, piece: Tensor) -> Flat:
    start = piece.numel() * dist.get_rank(parameter.ds_process_group)
    return Flat(piece.data[: max(0, parameter.ds_numel - start)], start)


def whole(parameter: nn.Parameter, piece: Flat) -> Tensor:
    """Return what the ranks' pieces make up, flat. All ranks call it."""
    made = torch.zeros(shape(parameter).numel(), dtype=piece.values.dtype, device=parameter.device)
    made[piece.start : piece.start + piece.values.numel()] = piece.values
    dist.all_reduce(made.view(torch.uint8))  # as bytes, of which all ranks' but one are zero: -0.0 keeps its sign
    return made


def gathered(parameter: nn.Parameter) -> Tensor:
    """Return a whole weight, in fp32 where it trains. All ranks call it."""
    if parameter.requires_grad:
        return whole(parameter, stepped(parameter))
    return whole(parameter, computed(parameter)) if hasattr(parameter, "ds_id") else parameter.detach()


def rows(parameter: nn.Parameter, flat: Tensor, rank: int, ranks: int) -> Piece:
    """Return the rows of a whole weight or moment that a rank writes, in memory of their own."""
    dims = tuple(shape(parameter))
    if not dims:
        return Piece(flat.cpu().view(()) if rank == 0 else flat[:0].cpu(), (), ())
    size = -(-dims[0] // ranks)
    start = min(size * rank, dims[0])
    own = flat.view(dims)[start : start + size].detach().to("cpu", copy=True)
    return Piece(own, (start, *[0] * (len(dims) - 1)), dims)


def shape(parameter: Any) -> torch.Size:
    """Return the shape checkpoints have of a weight."""
    return torch.Size() if hasattr(parameter, "scalar") else getattr(parameter, "ds_shape", parameter.shape)
