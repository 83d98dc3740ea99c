"""What a model costs: floating-point operations, parameters in use, bytes of weights, training state and KV cache.

Everything is worked out from the modules' shapes, so a model on the meta device is enough.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mlplatform.blocks.attention import Attention, CrossAttention, Heads, MergedAttention
from mlplatform.blocks.audio import Spectrogram
from mlplatform.blocks.feature_maps import LearnedSlots
from mlplatform.blocks.heads import Pooler, Projection, SequenceClassification, VocabularyLinear
from mlplatform.blocks.moe import MixtureOfExperts
from mlplatform.blocks.patches import Patches
from mlplatform.models.assemblies import SingleTower
from mlplatform.models.detector import Detector
from mlplatform.models.encoder_decoder import EncoderDecoder
from mlplatform.models.grounded_text import Grounded
from mlplatform.models.transformer import Transformer
from mlplatform.models.vision_language import VisionLanguage

FORMULA = (
    "2 for each multiply-add of a matrix product; attention's two products 4 * keys * heads * head_dim a token",
    "(keys: the whole sequence, or the window; a causal mask subtracts nothing, as in arXiv:2204.02311);",
    "the backward pass twice the forward one",
)
PRECISIONS = {"fp32": (4, 4, 8, 4), "bf16-mixed": (4, 4, 8, 2), "bf16-true": (2, 2, 4, 2)}
"""Bytes per parameter of weights, gradients and AdamW's two moments (kept in the weights' type), and bytes per number
of the KV cache, which has the type matrix products are computed in."""

Work = tuple[float, float]
"""FLOPs of matrices and of attention."""


def forward_flops(model: nn.Module, length: int) -> Work:
    """Return the forward FLOPs of one sequence: (products with matrices, attention's own products).

    Args:
        length: tokens of the sequence; source and target both have that many, and an image as many as it has patches.

    What is not a product (norms, activations, softmax, table look-ups) is left out, as `FORMULA` says. Any parameter
    with two dimensions or more counts as a matrix every position goes through; a block in which that is not so may
    say its own with a method `flops(rows, memory) -> (matrices, attention)`.
    """
    return _work(model, length, length)


def training_flops_per_token(model: nn.Module, length: int) -> float:
    """Return forward and backward FLOPs of one token of a sequence of `length`: three times the forward ones.

    Frozen parameters and activation checkpointing change nothing: these are the model's FLOPs, not the machine's.
    """
    return 3 * sum(forward_flops(model, length)) / length


def active_parameters(model: nn.Module) -> int:
    """Return how many parameters one token uses: of a mixture's experts, only its `top_k`."""
    idle = 0
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            idle += _size(module.experts) - round(_size(module.experts) * _share(module))
    return _size(model) - idle


def embedding_parameters(model: nn.Module) -> int:
    """Return the size of all look-up tables (tokens, positions, segments)."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding))


def cached_numbers(model: nn.Module) -> int:
    """Return how many numbers the KV cache holds per token: keys and values of every causal attention."""
    blocks = (m for m in model.modules() if isinstance(m, Attention) and m.causal)
    return sum(2 * block.kv_heads * block.head_dim for block in blocks)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _share(module: MixtureOfExperts) -> float:
    """Return the share of the experts one token goes through."""
    return module.router.top_k / len(module.experts.gate)


def _tower_rows(tower: nn.Module, length: int) -> int:
    """Return how many positions go through a tower: its image's patches, its slots, its frames, or its tokens."""
    start = getattr(tower, "input", None)
    if isinstance(start, Spectrogram):
        return start.length
    if isinstance(start, LearnedSlots):
        return start.slots.num_embeddings
    return start.positions.num_embeddings if isinstance(start, Patches) else length


def _work(module: nn.Module, rows: int, memory: int) -> Work:
    """Return the FLOPs of `rows` positions going through a module, beside a memory of so many."""
    told: Callable[[int, int], Work] | None = getattr(module, "flops", None)  # type: ignore[assignment]
    if told is not None:
        return told(rows, memory)
    if isinstance(module, Heads):
        return _attention(module, rows, memory)
    if isinstance(module, Patches):
        special = 0 if module.special is None else len(module.special)
        return 2.0 * (rows - special) * module.patch.weight.numel(), 0.0
    if isinstance(module, (Pooler, Projection, SequenceClassification)):
        rows = 1  # these read one position of each sequence
    if isinstance(module, (SingleTower, Transformer)):
        rows = _tower_rows(getattr(module, "trunk", module), rows)
    before = memory
    if isinstance(module, (EncoderDecoder, Detector)):
        memory = _tower_rows(module.encoder, rows)
    if isinstance(module, Grounded):
        memory = _tower_rows(module.vision.trunk, rows)
    parts = [(_own(module, rows), 0.0)]
    for child in module.children():
        if isinstance(module, VisionLanguage) and child is module.projector:
            parts.append(_work(child, _tower_rows(module.vision.trunk, rows) - module.drop, memory))
        elif isinstance(module, Detector) and child is module.head:
            parts.append(_work(child, _tower_rows(module.decoder, rows), memory))
        elif isinstance(module, MixtureOfExperts) and child is module.experts:
            parts.append((2.0 * rows * _size(child) * _share(module), 0.0))
        elif isinstance(module, EncoderDecoder) and child is module.encoder:
            parts.append(_work(child, rows, before))  # which may read another tower itself
        else:
            parts.append(_work(child, rows, memory))
    return _sum(parts)


def _own(module: nn.Module, rows: int) -> float:
    """Return the FLOPs of the matrices a module holds itself, or shares with the input."""
    if isinstance(module, nn.Embedding):
        return 0.0
    shared = module.weights[0].numel() if isinstance(module, VocabularyLinear) and module.out is None else 0
    return 2.0 * rows * (shared + sum(p.numel() for p in module.parameters(recurse=False) if p.ndim > 1))


def _attention(module: Heads, rows: int, memory: int) -> Work:
    """Return the FLOPs of attention, whose keys and values are made of its own rows, of the memory, or of both."""
    own = 0 if isinstance(module, CrossAttention) else rows
    read = own + (memory if isinstance(module, (CrossAttention, MergedAttention)) else 0)
    matrices = 0.0
    for name, child in module.named_children():
        matrices += _work(child, read if name in ("k", "v") else rows, memory)[0]
    window: tuple[int, int] | None = getattr(module, "window", None)
    keys = read if window is None else min(own, window[0] + window[1] + 1) + read - own
    return matrices, 4.0 * rows * keys * module.heads * module.head_dim


def _sum(parts: list[Work]) -> Work:
    matrices, attention = zip(*parts, strict=True)
    return sum(matrices), sum(attention)
