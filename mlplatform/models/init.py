"""How parameters start."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from mlplatform.registry import PositiveFloat, block


@block("init/normal")
class Normal:
    """Matrices and tables from N(0, std^2), biases 0, norms at one; the scheme of GPT-2, BERT and Llama.

    Args:
        std: HF's `initializer_range`.
        shrink_residual: matrices that write into the residual stream start 1 / sqrt(2 depth) smaller (GPT-2, 2.3).
    """

    def __init__(self, *, std: PositiveFloat = 0.02, shrink_residual: bool = False) -> None:
        self.std, self.shrink_residual = std, shrink_residual

    def __call__(self, model: nn.Module) -> None:
        """Initialise every parameter of the model in place, in the order of its modules."""
        depth = max((len(m) for m in model.modules() if isinstance(m, nn.ModuleList)), default=1)
        for module in chosen(model, (nn.Linear, nn.Embedding)):
            shrink = self.shrink_residual and getattr(module, "residual", False)
            nn.init.normal_(module.weight, std=self.std / (math.sqrt(2 * depth) if shrink else 1.0))
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)


@block("init/xavier")
class Xavier:
    """Signals keep their size whatever the widths: DETR's scheme (arXiv:2005.12872), for networks from scratch.

    Matrices are uniform with variance 2 / (inputs + outputs) (Xavier), convolutions normal with 2 / inputs (He,
    arXiv:1502.01852), tables N(0, tables^2), biases 0, norms at one.

    Args:
        tables: the deviation of embedding tables; DETR tells its slots apart by 1.
    """

    def __init__(self, *, tables: PositiveFloat = 1.0) -> None:
        self.tables = tables

    def __call__(self, model: nn.Module) -> None:
        """Initialise every parameter of the model in place, in the order of its modules."""
        for module in chosen(model, (nn.Linear, nn.Conv2d, nn.Embedding)):
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.tables)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)


def chosen(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[Any]:
    """Yield the modules of some kinds, in order; all others take their own initial values as they are passed."""
    settled = {id(m) for owner in model.modules() if getattr(owner, "resets_all", False) for m in owner.modules()}
    for module in model.modules():
        if id(module) in settled:
            if getattr(module, "resets_all", False):
                module.reset_parameters()  # type: ignore[operator]
        elif isinstance(module, kinds):
            yield module
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
