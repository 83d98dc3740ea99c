"""Attention within packed documents, each by itself: no scores between two of them, and no mask of the whole row.

On CUDA in half precision one kernel takes all documents at once, torch's `varlen_attn`; on CPUs they are attended to in
turn where rows are long. Elsewhere (fp32 on CUDA, where many small calls are slow) a mask hides them from each other:
masks.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mlplatform.blocks.masks import Window, attention_mask
from mlplatform.context import Context

HALF = (torch.float16, torch.bfloat16)
LONG = 512
"""From how many tokens on a row's documents are attended to in turn: in shorter rows the calls for small documents take
a CPU as long as what they save (benchmarks/documents.py)."""


@dataclass(frozen=True)
class Documents:
    """Where the documents of a batch lie, all its rows one after the other. The padding of a row counts as one."""

    lengths: list[int]
    longest: int
    ends: Tensor
    """Where each starts, and the last one ends: int32, on the device."""
    alone: Context
    """Of a document as long as the longest, in a row by itself."""
    kernel: bool
    """Whether the device takes all of them at once."""


def documents_apart(context: Context, values: Tensor) -> Documents | None:
    """Return where the documents lie if self-attention can be within each by itself, else None.

    It can't where keys are not the row's own tokens (a cache, a divided sequence), where scores get a bias, and where
    documents don't lie in the order of their numbers. They are looked for once per pass, which waits for the device.

    Args:
        values: (batch, heads, length, head_dim), in the type that attention computes in.
    """
    ids = context.documents
    if ids is None or context.padding is not None or context.bias is not None or context.cache is not None:
        return None
    if ids.shape != (values.shape[0], values.shape[2]):
        return None
    key = ("documents", values.dtype, values.shape[-1])
    if key not in context.memo:
        context.memo[key] = _found(ids, values)
    return context.memo[key]


@torch._disable_dynamo  # torch.compiler.disable, without three seconds for the compiler's import
def _found(ids: Tensor, values: Tensor) -> Documents | None:
    kernel = kernel_takes(values)
    if not kernel and (values.device.type != "cpu" or ids.shape[1] < LONG):
        return None
    rows = ids.detach().cpu()
    new = F.pad(rows[:, 1:] != rows[:, :-1], (1, 0), value=True)
    before = F.pad(rows.cummax(1).values[:, :-1], (1, 0), value=0)
    if bool((new & (rows > 0) & (rows <= before)).any()):
        return None  # a number comes again, or after a larger one
    starts = new.flatten().nonzero().flatten()
    ends = F.pad(starts, (0, 1), value=rows.numel())
    lengths = ends.diff().tolist()
    alone = Context(torch.arange(max(lengths), device=ids.device)[None])
    return Documents(lengths, max(lengths), ends.to(ids.device, torch.int32), alone, kernel)


def kernel_takes(values: Tensor) -> bool:
    """Whether torch's kernel for documents of many lengths takes heads of this size and type on this device."""
    size = values.shape[-1]
    fits = values.is_cuda and values.dtype in HALF and size % 8 == 0 and (size <= 192 or size == 256)
    return fits and torch.cuda.get_device_capability(values.device) >= (8, 0)


def attend_within(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, *, causal: bool, window: Window | None, scale: float | None
) -> Tensor:
    """Return the values weighed by the scores within each document: (batch, heads, length, head_dim)."""
    if _sees_all(documents.longest, window, causal):
        window = None
    rows, length = q.shape[0], q.shape[2]
    q, k, v = (t.to(v.dtype).transpose(1, 2).flatten(0, 1) for t in (q, k, v))  # (all tokens, heads, head_dim)
    attend = _at_once if documents.kernel else _in_turn
    return attend(q, k, v, documents, causal, window, scale).unflatten(0, (rows, length)).transpose(1, 2)


def _sees_all(length: int, window: Window | None, causal: bool) -> bool:
    """Whether a window hides nothing in a document of that length."""
    return window is None or length - 1 <= (window[0] if causal else min(window))


def _at_once(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, causal: bool, window: Window | None, scale: float | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    sides = window or (-1, 0 if causal else -1)
    ends, longest, grouped = documents.ends, documents.longest, q.shape[1] != k.shape[1]
    mixed = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scale, window_size=sides, enable_gqa=grouped)
    assert isinstance(mixed, Tensor)
    return mixed


@torch._disable_dynamo  # a number of calls that no shape says
def _in_turn(
    q: Tensor, k: Tensor, v: Tensor, documents: Documents, causal: bool, window: Window | None, scale: float | None
) -> Tensor:
    longest, grouped = documents.longest, q.shape[1] != k.shape[1]
    mask, _ = attention_mask(documents.alone, longest, longest, q.dtype, causal=causal, window=window)
    mixed = []
    for part in zip(*(t.split(documents.lengths) for t in (q, k, v)), strict=True):
        length = len(part[0])
        hidden = None if mask is None or _sees_all(length, window, causal) else mask[..., :length, :length]
        own_q, own_k, own_v = (t.transpose(0, 1)[None] for t in part)
        one = F.scaled_dot_product_attention(
            own_q,
            own_k,
            own_v,
            attn_mask=hidden,
            is_causal=causal and hidden is None,
            scale=scale,
            enable_gqa=grouped,
        )
        mixed.append(one[0].transpose(0, 1))
    return torch.cat(mixed)
