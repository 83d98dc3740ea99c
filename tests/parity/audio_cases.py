"""The table's rows of models that read sound."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from oracle import ROWS, VOCAB, Case
from text_cases import PAIR_STATES, pair_batch
from torch import Tensor

FRAMES = 24


def spectrograms(padding: str | None, bins: int = 8) -> dict[str, Tensor]:
    """Return log-mel frames, and tokens to score; the mask over frames hides nothing from anyone."""
    batch = pair_batch(padding)
    del batch["input_ids"]
    if padding is not None:
        batch["attention_mask"] = torch.ones(ROWS, FRAMES, dtype=torch.long).tril(FRAMES - 6)
    generator = torch.Generator().manual_seed(4)
    return {**batch, "input_features": torch.randn(ROWS, bins, FRAMES, generator=generator)}


def sounds(padding: str | None) -> dict[str, Tensor]:
    return {"input_features": spectrograms(padding)["input_features"]}


WHISPER: dict[str, Any] = {"vocab_size": VOCAB, "num_mel_bins": 8, "d_model": 32, "max_source_positions": FRAMES // 2}
WHISPER |= {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 2}
WHISPER |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_target_positions": 20, "decoder_start_token_id": 3}
WHISPER |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "begin_suppress_tokens": None}


def whisper(variant: str, model: type, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    kw.setdefault("break_at", ("encoder.layer.mlp.activation", "relu"))
    kw.setdefault("inputs", spectrograms)
    return Case("whisper", variant, model, tf.WhisperConfig(**{**WHISPER, **(more or {})}), **kw)


AUDIO = [
    whisper("transcription", tf.WhisperForConditionalGeneration, fields=("logits", *PAIR_STATES)),
    whisper(
        "relu-16-bins-own-head",
        tf.WhisperForConditionalGeneration,
        {"activation_function": "relu", "num_mel_bins": 16, "tie_word_embeddings": False, "scale_embedding": True},
        inputs=lambda padding: spectrograms(padding, 16),
        break_at=("encoder.norm.eps", 0.3),
    ),
    whisper("bare", tf.WhisperModel, fields=("last_hidden_state", "encoder_last_hidden_state"), labels=False),
]
