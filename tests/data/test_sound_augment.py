"""Changes of training recordings: what each does, and that a row's own stream alone decides what is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlplatform.data.recordings import Heard
from mlplatform.data.sound_augment import SoundAugment, played
from mlplatform.errors import SpecError
from mlplatform.processors.audio import AudioProcessor
from mlplatform.registry import Spec

RATE = 8000
TONE = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE).astype(np.float32)

TONE_16K = np.repeat(TONE, 2)
"""An array that comes without its rate has 16,000 samples a second."""


def made(kind: str, **options: Any) -> SoundAugment:
    return Spec.of({"kind": kind, **options}, "sound_augment", "augment").build()


def pitch(samples: np.ndarray[Any, Any]) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples))


def test_a_faster_recording_is_shorter_and_higher() -> None:
    change = made("pace", most=0.25)
    found = [change(TONE, np.random.default_rng(seed)) for seed in range(40)]
    paces = [RATE / len(one) for one in found]
    assert 0.75 <= min(paces) < 0.85
    assert 1.15 < max(paces) <= 1.2501
    for one, pace in zip(found, paces, strict=True):
        assert pitch(one) == pytest.approx(440 * pace, rel=0.01)
        assert one.dtype == np.float32


def test_noise_is_as_loud_as_it_says() -> None:
    noise = made("noise", decibels=(20.0, 20.0))(TONE, np.random.default_rng(0)) - TONE
    assert 10 * np.log10((TONE**2).mean() / (noise**2).mean()) == pytest.approx(20, abs=0.3)
    assert noise.dtype == np.float32


def test_the_rows_stream_alone_decides_and_validation_hears_it_as_it_is() -> None:
    changes = [made("pace"), made("noise")]
    heard = Heard(
        AudioProcessor({"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": RATE}), changes
    )
    first, again, other = (heard(TONE_16K, np.random.default_rng(seed))["input_values"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(other)
    plain = Heard(heard.processor)(TONE_16K)["input_values"]
    np.testing.assert_array_equal(heard(TONE_16K)["input_values"], plain)
    assert played(TONE, changes, None) is TONE


def test_what_can_not_be_is_refused() -> None:
    with pytest.raises(SpecError, match=r"most: 1\.0 is not allowed: it should be less than 1"):
        made("pace", most=1.0)
    with pytest.raises(SpecError, match=r"decibels=\[30.0, 10.0\]: the least, then the most"):
        made("noise", decibels=(30.0, 10.0))
