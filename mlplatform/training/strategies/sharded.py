"""A model divided among devices by torch's own engines: FSDP2 (`fully_shard`), DTensors for layers and experts."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from lightning.pytorch.strategies import Strategy
from torch import nn

from mlplatform.blocks.moe import mixtures
from mlplatform.errors import SpecError, listing
from mlplatform.models.share import Share
from mlplatform.registry import Positive, Spec, block
from mlplatform.training.precision import PrecisionName
from mlplatform.training.sharding.layers import check_layers, divided_blocks
from mlplatform.training.sharding.mesh import Mesh, MeshShare
from mlplatform.training.sharding.sequence import check_sequence
from mlplatform.training.sharding.strategy import MeshStrategy
from mlplatform.training.strategies.place import Place
from mlplatform.training.strategies.replicated import Arrangement, Portions, started

ELEMENTWISE = ("Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "Adamax", "NAdam", "RAdam", "Rprop", "ASGD", "Adadelta")
"""Optimizers of torch.optim whose state is one number for each weight."""


class Sharded(Arrangement):
    """What the strategies of this file share. `offload` and `gather` are FSDP's."""

    precisions: tuple[PrecisionName, ...] = ("fp32", "bf16-mixed", "bf16-true", "fp8")
    """No fp16: torch's loss scaling can't look at gradients of which some are divided and some are not."""
    fills = True
    gather: Literal["fp32", "bf16"] = "fp32"
    experts_divided = False
    context = 1

    def sizes(self, processes: int) -> Mesh:
        """Return the mesh of that many processes. Raises SpecError when they don't divide up."""
        raise NotImplementedError

    def check(self, place: Place, number: PrecisionName = "fp32") -> None:
        """Raise SpecError for one device, or for a number of devices the mesh doesn't multiply to."""
        super().check(place, number)
        if place.processes == 1:
            told = f"strategy={self.kind} divides a model among devices and trainer.devices=1; set it to 2 or more"
            raise SpecError(problems=[("trainer.devices", f"{told}, or use strategy=single")])
        self.sizes(place.processes)

    def check_model(self, model: nn.Module, optimizer: Spec, place: Place) -> None:
        """Raise SpecError when the optimizer's state, or a block the strategy divides, can't be divided."""
        name = optimizer.data.get("_target_", optimizer.kind).rpartition(".")[2]
        if name not in ("adamw", "muon", *ELEMENTWISE):
            told = f"the state of {name} can't be divided among ranks; use adamw or muon, or strategy=ddp"
            raise SpecError(problems=[("optimizer", told)])
        self.check_blocks(model, place)

    def check_blocks(self, model: nn.Module, place: Place) -> None:
        """Raise SpecError when ranks can't divide the layers of a model."""
        if (size := self.sizes(place.processes).parts) > 1:
            check_layers(model, size, self.kind)

    def portions(self, model: nn.Module, processes: int) -> Portions:
        """Return what is left of a model when layers are divided among some ranks, and that among the others."""
        mesh = self.sizes(processes)
        parts = [
            getattr(b, name) if name else b for _, b in divided_blocks(model) for name in b.splits if mesh.parts > 1
        ]
        divided = sum(p.numel() for p in {p for part in parts if part is not None for p in part.parameters()})
        share = divided / sum(p.numel() for p in model.parameters())
        return Portions(*[(1 - share + share / mesh.parts) / mesh.shards] * 3)

    def share(self, place: Place) -> Share:
        """Return which part of each batch and of the model is this process's."""
        sizes = self.sizes(place.processes)
        return MeshShare(sizes, place.rank, self.offload, self.gather, self.experts_divided, self.context)

    def build(self, place: Place, share: Share, clip_norm: float | None = None) -> Strategy:
        """Return Lightning's strategy. Raises RunError when nobody started the processes."""
        started(place)
        assert isinstance(share, MeshShare)
        return MeshStrategy(share, place.backend, timedelta(seconds=place.timeout))


def divided(key: str, size: int, processes: int) -> int:
    """Return how often a size goes into the processes. Raises SpecError when it doesn't, naming those that do."""
    if processes % size:
        fits = listing(n for n in range(2, processes + 1) if processes % n == 0)
        raise SpecError(problems=[(key, f"{size} does not divide the {processes} processes; it may be {fits}")])
    return processes // size


@block("strategy/fsdp")
class FSDP(Sharded):
    """Each rank holds a part of every weight, gradient and moment; layers are gathered as they compute (FSDP2).

    arXiv:2304.11277

    Args:
        replicate: copies of the sharded model, each on an equal part of the ranks (hybrid sharding): weights travel
            within a copy, gradients between copies too. 1 shards over all ranks.
        offload: weights, gradients and moments lie in the machine's memory and come to the device layer by layer.
        gather: the type weights travel and compute in. bf16 halves the traffic; gradients are summed in fp32.
    """

    def __init__(
        self, *, replicate: Positive = 1, offload: bool = False, gather: Literal["fp32", "bf16"] = "fp32"
    ) -> None:
        self.replicate, self.offload, self.gather = replicate, offload, gather

    def sizes(self, processes: int) -> Mesh:
        """Return the mesh: copies by shards."""
        return Mesh(self.replicate, divided("strategy.replicate", self.replicate, processes), 1)


@block("strategy/tp")
class TensorParallel(Sharded):
    """Every layer is divided among all ranks, which read the same batch: attention by heads, MLPs by their width.

    What can't be divided (norms, tables, heads) is held whole by each. arXiv:1909.08053
    """

    def __init__(self) -> None:
        pass

    precisions: tuple[PrecisionName, ...] = ("fp32", "bf16-mixed", "bf16-true")

    def sizes(self, processes: int) -> Mesh:
        """Return the mesh: one row."""
        return Mesh(1, 1, processes)


@block("strategy/fsdp_tp")
class FSDPTensorParallel(Sharded):
    """Both, on a mesh: layers divided among `tensor` neighbours, and what each of them holds sharded over the rest.

    Args:
        tensor: ranks that divide a layer among them; best those of one machine.
        offload, gather: as in `fsdp`.
    """

    def __init__(
        self, *, tensor: Positive = 2, offload: bool = False, gather: Literal["fp32", "bf16"] = "fp32"
    ) -> None:
        self.tensor, self.offload, self.gather = tensor, offload, gather

    precisions: tuple[PrecisionName, ...] = ("fp32", "bf16-mixed", "bf16-true")

    def sizes(self, processes: int) -> Mesh:
        """Return the mesh: shards by parts of a layer."""
        return Mesh(1, divided("strategy.tensor", self.tensor, processes), self.tensor)


@block("strategy/fsdp_cp")
class FSDPContextParallel(Sharded):
    """Weights sharded over all ranks, and every sequence divided among `context` neighbours: for long ones.

    Each holds the activations of its stretch, and gathers keys and values up to its end as it attends. Causal decoders
    of text. arXiv:2407.21783

    Args:
        context: ranks that divide a sequence among them; best those of one machine.
        offload, gather: as in `fsdp`.
    """

    def __init__(
        self, *, context: Positive = 2, offload: bool = False, gather: Literal["fp32", "bf16"] = "fp32"
    ) -> None:
        self.context, self.offload, self.gather = context, offload, gather

    def sizes(self, processes: int) -> Mesh:
        """Return the mesh: one row of shards."""
        divided("strategy.context", self.context, processes)
        return Mesh(1, processes, 1)

    def check_model(self, model: nn.Module, optimizer: Spec, place: Place) -> None:
        """Raise SpecError for a model whose sequences can't be divided."""
        super().check_model(model, optimizer, place)
        check_sequence(model, self.kind)


@block("strategy/ep")
class ExpertParallel(Sharded):
    """Each rank holds some of the experts of every mixture, and tokens travel to them; the rest as with `fsdp`.

    arXiv:2006.16668
    """

    experts_divided = True

    def __init__(self) -> None:
        pass

    def sizes(self, processes: int) -> Mesh:
        """Return the mesh: one row of shards."""
        return Mesh(1, processes, 1)

    def check_model(self, model: nn.Module, optimizer: Spec, place: Place) -> None:
        """Raise SpecError for a model without experts."""
        super().check_model(model, optimizer, place)
        if not any(True for _ in mixtures(model)):
            told = "strategy=ep divides experts among ranks and this model has none"
            raise SpecError(problems=[("strategy", f"{told}; use strategy=fsdp, or a model such as model=afmoe_tiny")])

    def check_blocks(self, model: nn.Module, place: Place) -> None:
        """Raise SpecError for a number of experts the ranks don't divide."""
        for name, moe in mixtures(model):
            experts = len(moe.experts.gate)
            if experts % place.processes:
                fits = listing(n for n in range(2, experts + 1) if experts % n == 0)
                told = f"{name} has {experts} experts, which {place.processes} ranks don't divide"
                raise SpecError(problems=[("trainer.devices", f"{told}; it may be {fits}")])
