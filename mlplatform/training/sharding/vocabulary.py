"""Tensor parallelism over the vocabulary: each rank holds some rows of the token table and of the head over it.

A table's rows are looked up by whoever has them and summed. A head's logits are never gathered to train: each rank
makes those of its classes, and the softmax's maximum and sum go around (arXiv:1909.08053, section 3).
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

from mlplatform.blocks.heads import VocabularyLinear
from mlplatform.blocks.losses import linear_cross_entropy_sum


def divide_vocabulary(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leave each rank of a mesh its rows of the tables and heads over a vocabulary they divide; others stay whole."""
    for module, name in _parts(model, "table"):
        table: nn.Embedding = getattr(module, name)
        if table.num_embeddings % mesh.size() == 0:
            parallelize_module(table, mesh, TableRows(input_layouts=Replicate()), src_data_rank=None)
    for head, _ in _parts(model, "vocabulary"):
        if head.out is not None and head.out.out_features % mesh.size() == 0:
            _cut(head.out, "weight", mesh)
            _cut(head.out, "bias", mesh)
        if isinstance(head.weights[0], DTensor):  # its own, or a table that was divided
            _cut(head, "bias", mesh)
            head.project = MethodType(_project, head)
            head.cross_entropy = MethodType(_cross_entropy, head)


class TableRows(RowwiseParallel):
    """A table by its rows. The sum is waited for: compiled layers can't read a tensor that is still under way."""

    @staticmethod
    def _prepare_output_fn(
        output_layouts: Any, use_local_output: bool, mod: nn.Module, outputs: Any, device_mesh: DeviceMesh
    ) -> Tensor:
        return outputs.redistribute(placements=output_layouts).to_local()


def _parts(model: nn.Module, how: str) -> list[tuple[Any, str]]:
    """Return the blocks, and the names of their parts, that say they are divided so."""
    found = [(module, getattr(module, "splits", {})) for module in model.modules()]
    return [(module, name) for module, splits in found for name, said in splits.items() if said == how]


def _cut(module: nn.Module, name: str, mesh: DeviceMesh) -> None:
    """Put this rank's rows in a parameter's place, where there is one."""
    whole: Any = getattr(module, name, None)
    if whole is not None:
        own = distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)
        module.register_parameter(name, nn.Parameter(own, requires_grad=whole.requires_grad))


class Neighbours:
    """The ranks that divide a vocabulary, as `linear_cross_entropy_sum` asks for them."""

    def __init__(self, weight: DTensor) -> None:
        self.group = weight.device_mesh.get_group()
        self.first = weight.device_mesh.get_local_rank() * (len(weight) // weight.device_mesh.size())

    def largest(self, tensor: Tensor) -> Tensor:
        """Return the largest of all ranks' numbers, in place."""
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of all ranks' numbers, in place."""
        dist.all_reduce(tensor, group=self.group)
        return tensor


def _project(head: VocabularyLinear, x: Tensor) -> Tensor:
    """All logits on every rank, by its own product and a gather."""
    weight, bias = head.weights
    assert isinstance(weight, DTensor)
    rows = DTensor.from_local(x, weight.device_mesh, [Replicate()], run_check=False)
    logits = nn.functional.linear(rows.to_local(grad_placements=[Partial()]), weight.to_local(), _local(bias))
    whole = DTensor.from_local(logits, weight.device_mesh, [Shard(logits.ndim - 1)], run_check=False)
    return whole.redistribute(placements=[Replicate()]).to_local()


def _cross_entropy(head: VocabularyLinear, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss over all classes, of which each rank makes its own logits alone."""
    weight, bias = head.weights
    assert isinstance(weight, DTensor)
    return linear_cross_entropy_sum(rows, weight.to_local(), _local(bias), labels, Neighbours(weight))


def _local(bias: Any) -> Tensor | None:
    return None if bias is None else bias.to_local()
