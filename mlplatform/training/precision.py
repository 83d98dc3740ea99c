"""In which number format a run computes, and which devices can."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch.plugins import HalfPrecision, MixedPrecision, Precision

from mlplatform.errors import SpecError

PrecisionName = Literal["fp32", "bf16-mixed", "bf16-true", "fp16-mixed"]


def plugin(name: PrecisionName, device: str) -> Precision:
    """Return Lightning's precision plugin.

    fp32: everything in fp32. bf16-mixed, fp16-mixed: weights and optimizer in fp32, matrix products in 16 bits;
    fp16 scales the loss and skips a step whose gradients overflow. bf16-true: weights and optimizer in bf16 too.

    Raises:
        SpecError: the device can't.
    """
    check(name, device)
    if name == "bf16-mixed":
        return MixedPrecision("bf16-mixed", device)
    if name == "fp16-mixed":
        return MixedPrecision("16-mixed", device, torch.amp.GradScaler(device))
    return HalfPrecision("bf16-true") if name == "bf16-true" else Precision()


def check(name: PrecisionName, device: str) -> None:
    """Raise SpecError when a device (`cpu`, `cuda`) can't compute in this precision."""
    if device == "cuda" and name.startswith("bf16") and not torch.cuda.is_bf16_supported(including_emulation=False):
        card = torch.cuda.get_device_name()
        raise SpecError(problems=[("trainer.precision", f"{card} has no {name}; take fp16-mixed or fp32")])


def compute_dtype(name: PrecisionName) -> torch.dtype:
    """Return the type matrix products are computed in."""
    return {"fp32": torch.float32, "fp16-mixed": torch.float16}.get(name, torch.bfloat16)
