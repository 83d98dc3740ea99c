"""Which results of a layer are kept for the backward pass when the rest is computed again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts

PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "_grouped_mm",
    "_scaled_mm",
    "_scaled_grouped_mm",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
)
"""Operations that take nearly all of a layer's time; what lies between them (norms, activations, sums) is cheap."""


def products_kept() -> Callable[[], Any]:
    """Return what `torch.utils.checkpoint` asks for as `context_fn`: products and attention are not computed again."""
    return partial(create_selective_checkpoint_contexts, [getattr(torch.ops.aten, name).default for name in PRODUCTS])
