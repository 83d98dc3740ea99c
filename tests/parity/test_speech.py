"""From recordings to tokens through folders of transformers': processor, model, decoding, beside theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from audio_cases import LARGE, hubert, wav2vec2, whisper
from oracle import Case, randomised

import mlplatform as mp
from mlplatform.context import Cache

NEW = 12
ONE_SECOND: dict[str, Any] = {"num_mel_bins": 80, "max_source_positions": 50, "max_target_positions": 30}
ONE_SECOND |= {"tie_word_embeddings": False}  # a random model with a tied head says one word for ever


def recordings() -> list[np.ndarray]:
    """Return a rising tone and a shorter, softer noise."""
    tone = np.sin(np.arange(14_000) ** 1.5 * 1e-4)
    return [tone.astype(np.float32), np.random.default_rng(0).normal(0, 0.05, 9_000).astype(np.float32)]


@torch.no_grad()
def test_greedy_transcripts(tmp_path: Path) -> None:
    """The encoder runs once; the decoder reads one new token at a time."""
    reference: Any = randomised(whisper("", tf.WhisperForConditionalGeneration, ONE_SECOND))
    reference.save_pretrained(tmp_path)
    extractor = tf.WhisperFeatureExtractor(chunk_length=1)
    extractor.save_pretrained(tmp_path)
    theirs = extractor(recordings(), sampling_rate=16000, return_tensors="pt").input_features
    want = reference.generate(theirs, max_new_tokens=NEW, do_sample=False, begin_suppress_tokens=None)

    model: Any = mp.load(tmp_path)
    batch = mp.load_processor(tmp_path)(recordings())
    heard, cache = model.encode(batch), Cache()
    tokens = torch.full((2, 1), model.start_token)
    for _ in range(NEW):
        logits = model(decoder_input_ids=tokens[:, -1:], encoder_outputs=heard, cache=cache).logits
        tokens = torch.cat((tokens, logits[:, -1].argmax(-1, keepdim=True)), 1)
    for row, told in zip(tokens.tolist(), want.tolist(), strict=True):
        ended = told.index(2) if 2 in told else NEW
        assert ended > 5
        assert row[1 : ended + 1] == told[-NEW:][:ended]
        assert len(set(row)) > 4, "it says hardly anything"
    assert not torch.equal(tokens[0], tokens[1])


@pytest.mark.parametrize("case", [wav2vec2("", tf.Wav2Vec2ForCTC), hubert("large", tf.HubertForCTC, LARGE)])
@torch.no_grad()
def test_frames_of_recordings_of_several_lengths(case: Case, tmp_path: Path) -> None:
    reference: Any = randomised(case)
    reference.save_pretrained(tmp_path)
    extractor = tf.Wav2Vec2FeatureExtractor(return_attention_mask=case.variant == "large")
    extractor.save_pretrained(tmp_path)
    theirs = extractor(recordings(), sampling_rate=16000, return_tensors="pt", padding=True)
    ours = mp.load_processor(tmp_path)(recordings())
    assert ours.keys() == theirs.keys()
    # in 64 bits: over 2300 frames of random weights either is 5e-5 from that in 32
    want = reference.double()(**{**theirs, "input_values": theirs["input_values"].double()}).logits
    got = mp.load(tmp_path).double()(**{**ours, "input_values": ours["input_values"].double()}).logits
    assert (got - want).abs().max() < 1e-10
    assert (want[0] - want[1]).abs().max() > 0.1
