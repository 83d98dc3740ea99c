"""Context parallelism: ranks divide every sequence among them, and gather keys and values as they attend.

As Llama 3 was trained (arXiv:2407.21783, section 3.3.2): a rank keeps the activations of its stretch alone, and of a
layer's keys and values those up to its end. Plain collectives, so it runs wherever attention does. What is not
balanced: the last stretch attends to the most keys.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from mlplatform.blocks.attention import Attention, Heads
from mlplatform.blocks.losses import IGNORED
from mlplatform.blocks.moe import mixtures
from mlplatform.blocks.positions import Counted, Learned, Sinusoids
from mlplatform.context import Cache, Output
from mlplatform.errors import RunError, SpecError, listing
from mlplatform.models.assemblies import add_loss

ALONG = {"attention_mask", "document_ids", "position_ids", "token_type_ids"}
"""What a batch may have beside tokens and labels: one number for each position."""
UP_TO_HERE = {"attention_mask", "document_ids"}
"""Which of these say something of the keys."""


def check_sequence(model: nn.Module, strategy: str, ranks: int) -> None:
    """Raise SpecError for a model whose sequences can't be divided: only a decoder of text reads from left to right.

    Stretches are equally long, so the last one may end behind the text, where a table of positions has no row.
    """
    attentions = [m for m in model.modules() if isinstance(m, Heads)]
    causal = bool(attentions) and all(type(m) is Attention and m.causal for m in attentions)
    text = getattr(model, "kind", "") == "single_tower" and getattr(getattr(model, "head", None), "task", "")
    if not causal or text != "causal_lm" or any(True for _ in mixtures(model)):
        told = f"strategy={strategy} divides the text of a causal decoder without experts, which this model is not"
        raise SpecError(problems=[("strategy", f"{told}; use strategy=fsdp")])
    length: Any = model.get_submodule("trunk").context_length
    if length % ranks and any(isinstance(m, Learned | Sinusoids | Counted) for m in model.modules()):
        told = f"model.trunk.context_length={length}, the length of a table of positions, can't be divided by {ranks}"
        fits = [n for n in range(2, length + 1) if length % n == 0]
        raise SpecError(problems=[("strategy.context", f"{told}; {listing(fits[:8])} would fit")])


def divide_sequences(model: nn.Module, mesh: DeviceMesh) -> None:
    """Let each rank of a mesh run its stretch of the sequences a model learns from, in place."""
    model.forward = MethodType(_Spread(mesh, model.forward), model)


class Stretch(Cache):
    """In the place of the cache of earlier tokens: those before a rank's stretch are its neighbours'."""

    aligned = True

    def __init__(self, mesh: DeviceMesh, start: int) -> None:
        super().__init__()
        self.mesh, self.start = mesh, start

    @property
    def length(self) -> int:  # type: ignore[override]
        """How many tokens there are before this stretch, also when its layers run again in the backward pass."""
        return self.start

    @length.setter
    def length(self, _: int) -> None:
        """Stay: nothing follows."""

    def extend(self, owner: nn.Module, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values (batch, heads, length, head_dim) of all tokens up to the end of this stretch."""
        return self._gathered(keys), self._gathered(values)

    def _gathered(self, own: Tensor) -> Tensor:
        parts = DTensor.from_local(own.contiguous(), self.mesh, [Shard(2)], run_check=False)
        whole = parts.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
        return whole[:, :, : self.start + own.shape[2]]


class _Spread:
    """Stands in for a model's forward pass where it learns: every rank gets the same batch and the whole loss."""

    def __init__(self, mesh: DeviceMesh, forward: Callable[..., Output]) -> None:
        self.mesh, self.forward = mesh, forward

    def __call__(self, _: nn.Module, input_ids: Any = None, labels: Any = None, **given: Any) -> Output:
        if labels is None or given.get("logits", True) or given.get("cache") is not None:
            return self.forward(input_ids=input_ids, labels=labels, **given)
        beside = {name: t for name, t in given.items() if isinstance(t, Tensor)}
        if other := beside.keys() - ALONG:
            raise RunError(f"strategy=fsdp_cp can't divide {min(other)}, which the batch has; use strategy=fsdp")
        ranks, length = self.mesh.size(), input_ids.shape[1]
        size = -(-length // ranks)
        start = size * self.mesh.get_local_rank()

        def cut(tensor: Tensor, first: int, filler: int = 0) -> Tensor:
            return F.pad(tensor, (0, size * ranks - length), value=filler)[:, first : start + size]

        following = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        own = {name: cut(t, 0 if name in UP_TO_HERE else start) for name, t in beside.items()}
        options = {name: value for name, value in given.items() if name not in beside}
        out = self.forward(
            input_ids=cut(input_ids, start),
            labels=cut(following, start, IGNORED),
            **{**options, **own, "cache": Stretch(self.mesh, start)},
        )
        count = out.loss_count.clone()
        dist.all_reduce(count, group=self.mesh.get_group())
        add_loss(out, _Sum.apply(out.loss_sum, self.mesh), count)  # type: ignore[arg-type]
        return out


class _Sum(torch.autograd.Function):
    """The sum of all stretches. Gradients are averaged over ranks, hence the factor on the way back."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, mesh: DeviceMesh) -> Tensor:
        ctx.ranks, total = mesh.size(), own.clone()
        dist.all_reduce(total, group=mesh.get_group())
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.ranks, None
