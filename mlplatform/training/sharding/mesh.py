"""The mesh of a run's processes, and the model divided over it."""

from __future__ import annotations

import logging
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard

from mlplatform.models.share import Share
from mlplatform.training.sharding.experts import divide_experts
from mlplatform.training.sharding.holding import OwnParts
from mlplatform.training.sharding.layers import divide_layers
from mlplatform.training.sharding.sequence import divide_sequences

COPIES, SHARDS, PARTS = "copies", "shards", "parts"


Gather = Literal["fp32", "bf16"]


class Mesh(NamedTuple):
    """How many copies of the model, shards of a copy, and parts of a layer; their product is the number of ranks."""

    copies: int
    shards: int
    parts: int


class MeshShare(Share):
    """A model whose weights are divided over a mesh: DTensors of torch's own engines.

    Neighbours along `parts` divide layers and read the same batch. The weights of each are sharded over `shards`.

    Args:
        offload, gather: as in `strategy/fsdp`. experts: each rank along `shards` holds some experts whole.
        context: ranks that divide every sequence: they shard the model as all do, and read the same batch.
    """

    divides = True

    def __init__(
        self,
        sizes: Mesh,
        rank: int,
        offload: bool = False,
        gather: Gather = "fp32",
        experts: bool = False,
        context: int = 1,
    ) -> None:
        self.holders = sizes.copies * sizes.shards
        super().__init__(rank // (sizes.parts * context), self.holders // context)
        self.sizes, self.offload, self.gather, self.experts = sizes, offload, gather, experts
        self.context = context
        self.mesh: DeviceMesh | None = None
        self.stretches: DeviceMesh | None = None
        self.apart: set[nn.Parameter] = set()
        """What no engine averages: scalars, which can't be sharded, and vectors that only their block changes."""
        self.held_alone: set[nn.Parameter] = set()
        """Experts of this rank, which all ranks' tokens come to."""
        self.divided: set[nn.Module] = set()

    def join(self, device: str) -> DeviceMesh:
        """Make the process groups, once all processes are there; return the mesh."""
        # Gathering what layers and shards both divide takes two steps, whatever it warns of.
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        self.mesh = init_device_mesh(device, tuple(self.sizes), mesh_dim_names=(COPIES, SHARDS, PARTS))
        if self.sizes.parts > 1:
            readers = self.mesh[COPIES, SHARDS]._flatten("readers")
            self.group = readers.get_group()
        if self.context > 1:
            both = init_device_mesh(device, (self.count, self.context), mesh_dim_names=("readers", "stretches"))
            self.group, self.stretches = both["readers"].get_group(), both["stretches"]
        return self.mesh

    def divide(self, model: nn.Module) -> None:
        """Leave this rank its part of a model: parts of layers first, then experts, then shards of what that leaves.

        There may be others beside the one that trains, which never do: a reference, a teacher.
        A model on the meta device gets its memory and its values afterwards, so that no rank ever holds it whole.
        """
        if model in self.divided:
            return
        assert self.mesh is not None
        self.divided.add(model)
        self._divide(model, self.mesh)
        if any(tensor.is_meta for tensor in model.parameters()):
            self._fill(model, "cpu" if self.offload else self.mesh.device_type)

    def _fill(self, model: Any, device: str) -> None:
        groups = (self.apart, self.held_alone)
        before = [(group, name, p) for group in groups for name, p in model.named_parameters() if p in group]
        model.to_empty(device=device)
        model.first_values.fill(model, OwnParts(model))
        del model.first_values  # and the files it reads
        now = dict(model.named_parameters())  # memory makes some of them other objects
        for group, name, p in before:
            group.remove(p)
            group.add(now[name])

    def _divide(self, model: nn.Module, mesh: DeviceMesh) -> None:
        if self.sizes.parts > 1:
            divide_layers(model, mesh[PARTS])
        if self.stretches is not None:
            divide_sequences(model, self.stretches)
        if self.holders == 1:
            return
        if self.experts:
            self.held_alone |= divide_experts(model, mesh[SHARDS])
        self.apart |= {p for p in model.parameters() if p.ndim == 0 or (p.ndim == 1 and not p.requires_grad)}
        rows = mesh[COPIES, SHARDS] if self.sizes.copies > 1 else mesh[SHARDS]
        options: dict[str, Any] = {"mesh": rows, "ignored_params": self.apart | self.held_alone}
        if self.gather == "bf16":
            options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        if self.offload:
            options["offload_policy"] = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
        towers: list[Any] = [m for m in model.modules() if isinstance(getattr(m, "layers", None), nn.ModuleList)]
        for layer in (layer for tower in towers for layer in tower.layers):
            fully_shard(layer, **options)
        fully_shard(model, **options)

    def settle(self, model: nn.Module) -> None:
        """Let go of weights that were gathered for a forward pass no backward pass followed."""
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def complete(self, model: nn.Module) -> None:
        """Average the gradients of what FSDP leaves alone."""
        for parameter in self.apart:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad, group=self.group if self.sizes.parts > 1 else None)
        for parameter in self.apart | self.held_alone:
            if parameter.grad is not None:
                parameter.grad /= self.holders
