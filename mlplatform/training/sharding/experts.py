"""Expert parallelism: each rank holds some experts of every mixture, and tokens travel to them and back."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from mlplatform.blocks.moe import Experts, mixtures


def divide_experts(model: nn.Module, mesh: DeviceMesh) -> set[nn.Parameter]:
    """Leave each rank of a mesh its experts of every mixture, in place; return their weights."""
    divided: set[nn.Parameter] = set()
    for _, moe in mixtures(model):
        experts: Any = moe.experts
        for name, matrix in list(experts.named_parameters()):
            own = nn.Parameter(distribute_tensor(matrix, mesh, [Shard(0)], src_data_rank=None))
            experts.register_parameter(name, own.requires_grad_(matrix.requires_grad))
            divided.add(own)
        experts.forward = torch.compiler.disable(MethodType(_Travelling(mesh), experts))
    return divided


class _Travelling:
    """Stands in for the forward pass of `Experts`: the rows of all ranks go to whoever holds their expert."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self.group, self.ranks = mesh.get_group(), mesh.size()

    def __call__(self, experts: Experts, rows: Tensor, counts: Tensor) -> Tensor:
        """Rows (tokens, dim) sorted by expert, `counts` (experts,) of them each -> (tokens, dim)"""
        sent = counts.view(self.ranks, -1)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent.contiguous(), group=self.group)
        there, here = sent.sum(1).tolist(), received.sum(1).tolist()
        arrived: Tensor = _AllToAll.apply(rows, here, there, self.group)  # type: ignore[assignment]
        # They come by rank, and by expert within; one product for each expert wants them by expert.
        numbers = torch.arange(received.shape[1], device=rows.device).repeat(self.ranks)
        order = numbers.repeat_interleave(received.flatten()).argsort(stable=True)
        done = Experts.forward(experts, arrived.index_select(0, order), received.sum(0))
        back = torch.zeros_like(done).index_copy(0, order, done)
        return _AllToAll.apply(back, there, here, self.group)  # type: ignore[return-value]


class _AllToAll(torch.autograd.Function):
    """Rows to and from all ranks; gradients travel the way back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, received: list[int], sent: list[int], group: Any) -> Tensor:
        ctx.sizes, ctx.group = (received, sent), group
        result = rows.new_empty(sum(received), rows.shape[1])
        dist.all_to_all_single(result, rows.contiguous(), received, sent, group=group)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        received, sent = ctx.sizes
        result = grads[0].new_empty(sum(sent), grads[0].shape[1])
        dist.all_to_all_single(result, grads[0].contiguous(), sent, received, group=ctx.group)
        return result, None, None, None
