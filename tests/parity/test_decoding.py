"""Token by token with a cache gives what the whole text gives at once, for every model of the table that decodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES
from oracle import Case, randomised, token_batch

import mlplatform as mp
from mlplatform.context import Cache

DECODERS = [case for case in CASES if "logits" in case.fields]
DECODERS = [case for case in DECODERS if case.model.__name__.endswith(("CausalLM", "LMHeadModel", "Generation"))]
AFTER = 4
"""Tokens decoded one at a time."""


def pieces(batch: dict[str, Any], prefix: str, end: int, new: int) -> dict[str, Any]:
    """Return the batch of the `new` tokens before `end`, with the mask of all up to there."""
    cut = dict(batch)
    cut[f"{prefix}input_ids"] = batch[f"{prefix}input_ids"][:, end - new : end]
    if f"{prefix}attention_mask" in batch:
        cut[f"{prefix}attention_mask"] = batch[f"{prefix}attention_mask"][:, :end]
    return cut


@pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.name)
@pytest.mark.parametrize("padding", [None, "left"])
@torch.no_grad()
def test_cached(case: Case, padding: str | None, tmp_path: Path) -> None:
    if "dynamic" in case.name:
        pytest.skip("its angles depend on the length so far")
    randomised(case).save_pretrained(tmp_path)
    model = mp.load(tmp_path, config_dirs=case.config_dirs)
    batch = (case.inputs or token_batch)(padding)
    prefix = "decoder_" if "decoder_input_ids" in batch else ""
    whole = model(**batch).logits
    length = batch[f"{prefix}input_ids"].shape[1]
    cache, start = Cache(), length - AFTER
    steps = [model(**pieces(batch, prefix, start, start), cache=cache).logits]
    if hasattr(model, "image_token") and not prefix:
        batch.pop("pixel_values", None)  # the images lie in the text that the cache holds
    steps += [model(**pieces(batch, prefix, end, 1), cache=cache).logits for end in range(start + 1, length + 1)]
    gap = (torch.cat(steps, 1) - whole).abs()
    mask = batch.get(f"{prefix}attention_mask")
    assert (gap if mask is None else gap[mask.bool()]).max() <= 2 * case.within
