"""How parameters start."""

from __future__ import annotations

import math

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
        settled = {id(m) for owner in model.modules() if getattr(owner, "resets_all", False) for m in owner.modules()}
        for module in model.modules():
            if id(module) in settled:
                if getattr(module, "resets_all", False):
                    module.reset_parameters()  # type: ignore[operator]
            elif isinstance(module, (nn.Linear, nn.Embedding)):
                shrink = self.shrink_residual and getattr(module, "residual", False)
                nn.init.normal_(module.weight, std=self.std / (math.sqrt(2 * depth) if shrink else 1.0))
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
