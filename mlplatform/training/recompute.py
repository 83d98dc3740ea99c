"""Which results of a layer are kept for the backward pass when the rest is computed again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

PRODUCTS = {
    "aten.mm.default",
    "aten.addmm.default",
    "aten.bmm.default",
    "aten.baddbmm.default",
    "aten._grouped_mm.default",
    "aten._scaled_mm.default",
    "aten._scaled_grouped_mm.default",
    "aten._scaled_dot_product_flash_attention.default",
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
    "aten._scaled_dot_product_efficient_attention.default",
    "aten._scaled_dot_product_cudnn_attention.default",
    "torch_attn._varlen_attn.default",  # which exists once it was used: blocks/documents.py
}
"""Operations that take nearly all of a layer's time; what lies between them (norms, activations, sums) is cheap."""


def products_kept() -> Callable[[], Any]:
    """Return what `torch.utils.checkpoint` asks for as `context_fn`: products and attention are not computed again."""
    return partial(create_selective_checkpoint_contexts, _kept)


def _kept(_: Any, operation: Any, *given: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if str(operation) in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
