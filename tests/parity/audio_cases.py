"""The table's rows of models that read sound."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from family_cases import FOLDER
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


SAMPLES = 107
"""They become 15 frames of the small front end; the rows of a padded batch 15, 9 and 3."""


def waveforms(padding: str | None) -> dict[str, Tensor]:
    """Return samples and, when padded, a mask over them: padding is zero, and after a recording."""
    generator = torch.Generator().manual_seed(6)
    samples = torch.randn(ROWS, SAMPLES, generator=generator)
    if padding is None:
        return {"input_values": samples}
    mask = (torch.arange(SAMPLES) < torch.tensor([SAMPLES, 70, 35])[:, None]).long()
    return {"input_values": samples * mask, "attention_mask": mask}


def transcribed(padding: str | None) -> dict[str, Tensor]:
    """Return samples and their transcripts, the last of which is shorter and has a repetition."""
    labels = torch.tensor([[5, 7, 7, 2], [3, 9, 4, -100], [8, 8, -100, -100]])
    return {**waveforms(padding), "labels": labels}


def hidden(padding: str | None) -> dict[str, Tensor]:
    """Return samples, and which of their frames are hidden."""
    return {**waveforms(padding), "mask_time_indices": torch.arange(15)[None] % 5 == torch.tensor([[0], [1], [2]])}


SOUND: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SOUND |= {"conv_dim": [12, 16, 16], "conv_kernel": [10, 3, 2], "conv_stride": [3, 2, 1], "vocab_size": 11}
SOUND |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
CODES: dict[str, Any] = {"num_codevectors_per_group": 6, "codevector_dim": 8, "proj_codevector_dim": 10}
LARGE: dict[str, Any] = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
LARGE |= {"num_conv_pos_embeddings": 5, "ctc_loss_reduction": "mean", "ctc_zero_infinity": True}


def sound(family: str, config: Any, variant: str, model: type, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    kw = {"paddings": (None, "right"), "inputs": waveforms, "within": 2e-5, **kw}
    kw.setdefault("break_at", ("trunk.layer.mlp.activation", "relu"))
    return Case(family, variant, model, config(**{**SOUND, **(more or {})}), **kw)


def wav2vec2(variant: str, model: type, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    return sound("wav2vec2", tf.Wav2Vec2Config, variant, model, {**CODES, **(more or {})}, **kw)


def hubert(variant: str, model: type, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    return sound("hubert", tf.HubertConfig, variant, model, more, **kw)


def unispeech(variant: str, model: type, more: dict[str, Any] | None = None, **kw: Any) -> Case:
    return sound("unispeech", tf.UniSpeechConfig, variant, model, more, config_dirs=(FOLDER,), **kw)


STATES = ("hidden_states.0", "hidden_states.1", "hidden_states.2")
BARE: dict[str, Any] = {"fields": ("last_hidden_state", "extract_features", *STATES), "labels": False}
HUBERT: dict[str, Any] = {"fields": ("last_hidden_state", *STATES), "labels": False}
CTC: dict[str, Any] = {"fields": ("logits", "loss", *STATES), "inputs": transcribed}
CONTRAST: dict[str, Any] = {"inputs": hidden, "labels": False}
CONTRAST["fields"] = ("projected_states", "projected_quantized_states", "codevector_perplexity", *STATES)


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
    whisper(
        "classification",
        tf.WhisperForAudioClassification,
        {"num_labels": 3, "classifier_proj_size": 12},
        inputs=sounds,
        paddings=(None,),
        break_at=("trunk.layer.mlp.activation", "relu"),
    ),
    wav2vec2("bare", tf.Wav2Vec2Model, **BARE),
    wav2vec2("large-bare", tf.Wav2Vec2Model, LARGE, **BARE),
    wav2vec2("hidden-frames", tf.Wav2Vec2Model, **{**BARE, "inputs": hidden}),
    wav2vec2("no-masking", tf.Wav2Vec2Model, {"mask_time_prob": 0.0}, **BARE),
    wav2vec2("ctc", tf.Wav2Vec2ForCTC, **CTC),
    wav2vec2("large-ctc", tf.Wav2Vec2ForCTC, LARGE, **CTC),
    wav2vec2(
        "ctc-blank-relu",
        tf.Wav2Vec2ForCTC,
        {"pad_token_id": 10, "feat_extract_activation": "relu", "apply_spec_augment": False},
        **{**CTC, "break_at": ("trunk.input.front.activation", "gelu")},
    ),
    wav2vec2("pretraining", tf.Wav2Vec2ForPreTraining, **CONTRAST),
    wav2vec2("large-pretraining", tf.Wav2Vec2ForPreTraining, LARGE, **CONTRAST),
    wav2vec2("classification", tf.Wav2Vec2ForSequenceClassification, {"num_labels": 3, "classifier_proj_size": 12}),
    wav2vec2("frame-classification", tf.Wav2Vec2ForAudioFrameClassification, {"num_labels": 3}, labels=False),
    hubert("bare", tf.HubertModel, **HUBERT),
    hubert("large-bare", tf.HubertModel, LARGE, **HUBERT),
    hubert("batch-norm", tf.HubertModel, {"conv_pos_batch_norm": True}, **HUBERT),
    hubert("no-projection-norm", tf.HubertModel, {"feat_proj_layer_norm": False}, **HUBERT),
    hubert("ctc", tf.HubertForCTC, **CTC),
    hubert("large-ctc", tf.HubertForCTC, LARGE, **CTC),
    hubert("classification", tf.HubertForSequenceClassification, {"num_labels": 3, "classifier_proj_size": 12}),
    unispeech("bare", tf.UniSpeechModel, **BARE),
    unispeech("large-ctc", tf.UniSpeechForCTC, LARGE, **CTC),
]
