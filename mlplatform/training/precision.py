"""In which number format a run computes, and which devices can."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from lightning.pytorch.plugins import HalfPrecision, MixedPrecision, Precision
from torch import nn

from mlplatform.errors import SpecError

PrecisionName = Literal["fp32", "bf16-mixed", "bf16-true", "fp16-mixed", "fp8"]
FP8_SINCE = (8, 9)
"""Compute capability of the first CUDA devices with products in 8 bits (Ada, Hopper)."""


def plugin(name: PrecisionName, device: str) -> Precision:
    """Return Lightning's precision plugin.

    fp32: everything in fp32. bf16-mixed, fp16-mixed: weights and optimizer in fp32, matrix products in 16 bits;
    fp16 scales the loss and skips a step whose gradients overflow. bf16-true: weights and optimizer in bf16 too, where
    small updates round away; bf16-mixed is the one that keeps weights exact. fp8: bf16-mixed, on layers `in_8_bits`.

    Raises:
        SpecError: the device can't.
    """
    check(name, device)
    if name in ("bf16-mixed", "fp8"):
        return MixedPrecision("bf16-mixed", device)
    if name == "fp16-mixed":
        return MixedPrecision("16-mixed", device, torch.amp.GradScaler(device))
    return HalfPrecision("bf16-true") if name == "bf16-true" else Precision()


def check(name: PrecisionName, device: str) -> None:
    """Raise SpecError when a device (`cpu`, `cuda`) can't compute in this precision."""
    if device == "cuda" and name.startswith("bf16") and not torch.cuda.is_bf16_supported(including_emulation=False):
        card = torch.cuda.get_device_name()
        raise SpecError(problems=[("trainer.precision", f"{card} has no {name}; take fp16-mixed or fp32")])
    if name == "fp8":
        has = device == "cuda" and torch.cuda.get_device_capability() >= FP8_SINCE
        lacks = "" if has else "a CUDA device of compute capability 8.9 or more (Ada, Hopper)"
        if has and importlib.util.find_spec("torchao") is None:
            lacks = "torchao: pip install 'mlplatform[fp8]'"
        if lacks:
            raise SpecError(problems=[("trainer.precision", f"fp8 needs {lacks}; take bf16-mixed or fp32")])


def in_8_bits(layers: nn.Module, **config: Any) -> None:
    """Let the linear maps of layers multiply in fp8, each tensor scaled by its largest value; weights stay as they are.

    Args:
        config: fields of torchao's `Float8LinearConfig`.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def fits(module: nn.Module, _: str) -> bool:
        return type(module) is nn.Linear and module.in_features % 16 == 0 and module.out_features % 16 == 0

    convert_to_float8_training(layers, config=Float8LinearConfig(**config), module_filter_fn=fits)


def compute_dtype(name: PrecisionName) -> torch.dtype:
    """Return the type matrix products are computed in."""
    return {"fp32": torch.float32, "fp16-mixed": torch.float16}.get(name, torch.bfloat16)
