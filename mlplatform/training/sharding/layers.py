"""Tensor parallelism: which parts of a block are divided how, as the block itself says, and a model divided so.

A block that can be divided has

    splits      the names of its modules: `columns` (a linear map by what it writes), `rows` (by what it reads, its
                results are summed), `heads` (a norm of each head by itself), `groups` (keys and values, of which
                there may be fewer than ranks), `bias` (what is added to scores, by heads), `experts` (by their width);
                `table` and `vocabulary`, where ranks divide the number of tokens (vocabulary.py)
    divisible() by name, the numbers that the ranks must divide; empty where the block can't be divided

Of a linear map with an adapter (LoRA) the map is divided, and of the adapter's two what faces the divided side; DoRA's
magnitudes go with the map (dora.py). A block without these, or with parts that are neither (4 bits), is held whole by
every rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from mlplatform.errors import SpecError, listing
from mlplatform.training.sharding.dora import divide_directions
from mlplatform.training.sharding.vocabulary import divide_vocabulary

LINEAR = ("columns", "rows", "groups")


def divided_blocks(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (name, block) for the blocks tensor parallelism divides.

    Where positions are a bias of every head, it is divided with all attentions of its tower, or none of these is.
    """
    kept: set[nn.Module] = set()
    for tower in model.modules():
        if getattr(tower, "position_bias", None) is not None:
            by_heads = [m for m in tower.modules() if "heads" in _numbers(m) or "q" in getattr(m, "splits", ())]
            kept |= set() if all(_able(m) for m in by_heads) else set(by_heads)
    yield from ((name, m) for name, m in model.named_modules() if _able(m) and m not in kept)


def check_layers(model: nn.Module, size: int, strategy: str) -> None:
    """Raise SpecError when that many ranks can't divide the blocks of a model, naming the numbers that can."""
    numbers = [(name, what, n) for name, block in divided_blocks(model) for what, n in block.divisible().items()]
    if not numbers:
        told = f"no block of this model can be divided by strategy={strategy}"
        raise SpecError(problems=[("strategy", f"{told}; use strategy=fsdp")])
    for name, what, n in numbers:
        if not fits(what, n, size):
            good = [k for k in range(2, max(m for *_, m in numbers) + 1) if all(fits(w, m, k) for _, w, m in numbers)]
            told = f"model.{name}.{what}={n} can't be divided by {size} ranks"
            raise SpecError(problems=[("strategy", f"{told}; {listing(good) or 'no number of'} ranks would fit")])


def fits(what: str, number: int, size: int) -> bool:
    """Whether ranks divide a number; fewer heads of keys and values than ranks are shared by several."""
    return number % size == 0 or (what == "kv_heads" and size % number == 0)


def divide_layers(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leave each rank of a mesh its part of every block that can be divided, in place."""
    for _, module in list(divided_blocks(model)):
        for name, how in module.splits.items():
            part = getattr(module, name, None) if name else module
            if part is not None:
                trained = {key for key, p in part.named_parameters() if p.requires_grad}
                style = _style(how, module, mesh)
                faces = [part] if isinstance(style, SharedGroups) else _faces(part, how)
                for face in faces:
                    # All ranks hold the same weights: each cuts its part out.
                    parallelize_module(face, mesh, style, src_data_rank=None)
                if faces != [part]:
                    divide_directions(part, how, mesh)
                for key, p in part.named_parameters():
                    p.requires_grad_(key in trained)
    divide_vocabulary(model, mesh)


def _numbers(module: Any) -> dict[str, int]:
    return module.divisible() if hasattr(module, "divisible") else {}


def _able(module: Any) -> bool:
    if not _numbers(module):
        return False
    parts = [(how, getattr(module, name, None)) for name, how in module.splits.items() if name]
    return all(part is None or how not in LINEAR or _linear(part) for how, part in parts)


def _linear(part: Any) -> bool:
    """Whether a module is a plain linear map, or one with an adapter that adds to what it writes."""
    adapted = isinstance(getattr(part, "lora_A", None), nn.ModuleDict)
    return type(part) is nn.Linear or (adapted and type(part.base_layer) is nn.Linear)


def _faces(part: Any, how: str) -> list[nn.Module]:
    """Return what of a part is divided: of a map with an adapter the map, and A where it reads, B where it writes."""
    if how not in LINEAR or not hasattr(part, "lora_A"):
        return [part]
    return [part.base_layer, *(part.lora_A if how == "rows" else part.lora_B).values()]


def _style(how: str, module: Any, mesh: DeviceMesh) -> ParallelStyle:
    shared = getattr(module, "kv_heads", mesh.size()) % mesh.size() != 0
    if how == "groups" and shared:
        return SharedGroups(module.kv_heads)
    styles = {
        "columns": ColwiseParallel,
        "groups": ColwiseParallel,
        "rows": RowwiseParallel,
        "heads": partial(SequenceParallel, sequence_dim=1, use_local_output=True),
        "bias": HeadsOfBias,
        "experts": ExpertWidths,
    }
    return styles[how]()


class HeadsOfBias(ParallelStyle):
    """A module whose output (1, heads, queries, keys) is made whole by every rank, which then keeps its heads."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def own_heads(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            whole = DTensor.from_local(output, device_mesh, [Replicate()], run_check=False)
            return whole.redistribute(placements=[Shard(1)]).to_local()  # backwards, the gradients of all heads meet

        module.register_forward_hook(own_heads)
        return module


class SharedGroups(ParallelStyle):
    """A projection to fewer key or value heads than ranks: made whole by every rank, which keeps the one it needs."""

    def __init__(self, kv_heads: int) -> None:
        super().__init__()
        self.kv_heads = kv_heads

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        number = device_mesh.get_local_rank() * self.kv_heads // device_mesh.size()

        def own_head(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            whole = DTensor.from_local(output, device_mesh, [Replicate()], run_check=False)
            own = whole.to_local(grad_placements=[Partial()])  # each rank's queries add to the gradient
            return own.unflatten(-1, (self.kv_heads, -1))[..., number, :]

        module.register_forward_hook(own_head)
        return module


class ExpertWidths(ParallelStyle):
    """Stacked experts, each divided by its width: gate and up by what they write, down by what it reads."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def divide(_: str, experts: nn.Module, mesh: DeviceMesh) -> None:
            for name, dim in (("gate", 1), ("up", 1), ("down", 2)):
                matrix = getattr(experts, name)
                whole = distribute_tensor(matrix, mesh, [Shard(dim)], src_data_rank=None)
                experts.register_parameter(name, nn.Parameter(whole, requires_grad=matrix.requires_grad))

        def read(_: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
            rows = DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False)
            return rows.to_local(grad_placements=[Partial()]), *inputs[1:]

        def written(_: nn.Module, output: Any, mesh: DeviceMesh) -> Tensor:
            summed = DTensor.from_local(output, mesh, [Partial()], run_check=False).redistribute(
                placements=[Replicate()]
            )
            return summed.to_local()

        return distribute_module(module, device_mesh, divide, read, written)  # type: ignore[arg-type]
