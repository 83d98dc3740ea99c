"""Optimizers, and which parameters they decay.

Each kind is handed the model and makes parameter groups with names, so that a checkpoint stores its state by the
parameters' names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from mlplatform.errors import SpecError, listing
from mlplatform.registry import Fraction, NonNegativeFloat, PositiveFloat, Spec, Text, block
from mlplatform.training.sharding.muon import Muon

Named = list[tuple[str, nn.Parameter]]


def build(spec: Spec, model: nn.Module) -> Optimizer:
    """Build the optimizer a spec names, ours or one of `torch.optim` by `_target_`.

    Each group keeps its peak rate as `initial_lr`, which the schedule multiplies.

    Raises:
        SpecError: the model has nothing to train, or the optimizer refuses its arguments.
    """
    named = trainable(model)
    if not named:
        raise SpecError("the model has no parameter to train")
    optimizer: Optimizer = spec.build(model=model, params=decay_groups(model, named))
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return optimizer


def trainable(model: nn.Module) -> Named:
    """Return the parameters that take a gradient, each once, with their names."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def decay_groups(model: nn.Module, named: Named) -> list[dict[str, Any]]:
    """Split parameters into those that decay and those that don't (`weight_decay` 0).

    Only matrices decay. Biases, the vectors of norms, and embedding tables (of tokens, positions, segments) don't:
    decay would shrink the rows of rare tokens, which get no gradient to grow them back. A token table that is also
    the output matrix counts as a table.
    """
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    dims = {n: len(getattr(p, "ds_shape", p.shape)) for n, p in named}  # DeepSpeed's pieces are flat
    still = [(n, p) for n, p in named if dims[n] < 2 or n.endswith("bias") or id(p) in tables]
    names = {n for n, _ in still}
    groups = [{"params": part} for part in by_mesh([(n, p) for n, p in named if n not in names])]
    return groups + [{"params": part, "weight_decay": 0.0} for part in by_mesh(still)]


def by_mesh(named: Named) -> list[Named]:
    """Split parameters that are divided over different meshes of ranks, or over none: one kernel takes one sort."""
    parts: dict[Any, Named] = {}
    for name, p in named:
        parts.setdefault(getattr(p, "device_mesh", None), []).append((name, p))
    return list(parts.values())


def can_fuse(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether one kernel can do the whole step: all parameters are floats on a CPU or a CUDA device."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


@block("optimizer/adamw")
def adamw(
    model: nn.Module,
    *,
    lr: PositiveFloat = 3e-4,
    betas: tuple[Fraction, Fraction] = (0.9, 0.95),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.1,
) -> Optimizer:
    """AdamW, fused where the device can. arXiv:1711.05101

    Args:
        lr: the peak learning rate.
        weight_decay: of matrices; norms, biases and embedding tables don't decay.
    """
    named = trainable(model)
    fused = can_fuse(p for _, p in named)
    groups = decay_groups(model, named)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)


@block("optimizer/adafactor")
def adafactor(
    model: nn.Module,
    *,
    lr: PositiveFloat = 1e-2,
    beta2_decay: float = -0.8,
    clip: PositiveFloat = 1.0,
    weight_decay: NonNegativeFloat = 0.0,
) -> Optimizer:
    """Adafactor: row and column sums instead of a second moment per weight. arXiv:1804.04235

    Args:
        lr: the peak of the *relative* step: it is multiplied by each parameter's root mean square.
        beta2_decay: the second moment's rate at step t is 1 - t ** beta2_decay.
        clip: updates with a larger root mean square are scaled down to it.
        weight_decay: of matrices; norms, biases and embedding tables don't decay.
    """
    groups = decay_groups(model, trainable(model))
    return torch.optim.Adafactor(groups, lr=lr, beta2_decay=beta2_decay, d=clip, weight_decay=weight_decay)


@block("optimizer/muon")
def muon(
    model: nn.Module,
    *,
    lr: PositiveFloat = 3e-4,
    momentum: Fraction = 0.95,
    weight_decay: NonNegativeFloat = 0.1,
    match: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
    matrices: list[Text] = ["*layers.*"],  # noqa: B006  (read as data, never changed)
    adamw_lr: PositiveFloat | None = None,
    betas: tuple[Fraction, Fraction] = (0.9, 0.95),
    eps: PositiveFloat = 1e-8,
) -> Optimizer:
    """Muon for the hidden matrices, AdamW for all else. https://kellerjordan.github.io/posts/muon/

    Args:
        lr: the peak learning rate.
        match: `match_rms_adamw` scales Muon's updates to the size of AdamW's, so that both share one rate
            (arXiv:2502.16982); `original` leaves them, and Muon's rate is then some ten times AdamW's.
        matrices: path patterns of the parameters Muon takes, if they have two dimensions (`*layers.*.mlp.*`).
        adamw_lr: the peak rate of the rest; null for `lr`.
        weight_decay: of matrices; norms, biases and embedding tables don't decay.
    """
    named = trainable(model)
    hidden = [(n, p) for n, p in named if p.ndim == 2 and any(fnmatchcase(n, pattern) for pattern in matrices)]
    if not hidden:
        two = [n for n, p in named if p.ndim == 2]
        raise SpecError(f"matrices={matrices} fits no matrix of the model; it has {listing(two, 6)}")
    ours = {n for n, _ in hidden}
    rest = [(n, p) for n, p in named if n not in ours]
    parts: list[Optimizer] = [
        Muon([{"params": hidden}], lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn=match)
    ]
    if rest:
        fused = can_fuse(p for _, p in rest)
        groups = decay_groups(model, rest)
        other = torch.optim.AdamW(
            groups, lr=adamw_lr or lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused
        )
        parts.append(other)
    return Joined(parts)


class Joined(Optimizer):
    """Several optimizers, each with parameters of its own, as one: one step, one state, one list of groups."""

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts: list[Optimizer] = []
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.sizes = [len(part.param_groups) for part in parts]
        self.parts = parts
        self._share()

    def _share(self) -> None:
        """Give the parts this optimizer's own state and groups, so that a change to either is seen by both."""
        start = 0
        for part, size in zip(self.parts, self.sizes, strict=True):
            part.param_groups = self.param_groups[start : start + size]
            part.state = self.state
            start += size

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of all parts."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step of each part. The closure is called once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss
