"""Audio processors beside transformers' feature extractors: equal bit for bit; what they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from mlplatform.errors import CheckpointError, DataError
from mlplatform.processors.audio import AudioProcessor, mel_filters
from mlplatform.processors.loading import load_processor

WAVE, MEL = "Wav2Vec2FeatureExtractor", "WhisperFeatureExtractor"
SHORT = {"chunk_length": 2}
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    (WAVE, {}),
    (WAVE, {"return_attention_mask": True}),
    (WAVE, {"return_attention_mask": True, "padding_value": -1.0}),
    (WAVE, {"do_normalize": False}),
    (WAVE, {"sampling_rate": 8000}),
    (MEL, {}),
    (MEL, {"feature_size": 128}),
    (MEL, {**SHORT, "return_attention_mask": True}),
    (MEL, {**SHORT, "hop_length": 150, "n_fft": 512, "return_attention_mask": True}),
    (MEL, {**SHORT, "sampling_rate": 22050, "return_attention_mask": True, "padding_value": 0.1}),
]


def recordings(dtype: type = np.float32) -> list[np.ndarray]:
    """Return a tone that swells, a short noise off the middle, and one longer than two seconds."""
    noise = np.random.default_rng(0)
    tone = np.sin(np.arange(20_000) * 0.05) * np.linspace(0, 0.8, 20_000)
    return [a.astype(dtype) for a in (tone, noise.normal(0.3, 0.1, 700), noise.normal(0, 0.1, 50_000))]


def theirs(kind: str, more: dict[str, Any]) -> Any:
    return getattr(tf, kind)(**more)


@pytest.mark.parametrize(("kind", "more"), CONFIGS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_the_reference(kind: str, more: dict[str, Any], dtype: type, tmp_path: Path) -> None:
    reference = theirs(kind, more)
    reference.save_pretrained(tmp_path)
    ours = AudioProcessor.from_folder(tmp_path)
    rate, padding = reference.sampling_rate, {"padding": True} if kind == WAVE else {}
    masked = {"return_attention_mask": True} if more.get("return_attention_mask") else {}  # Whisper's call forgets it
    want = reference(recordings(dtype), sampling_rate=rate, return_tensors="pt", **padding, **masked)
    got = ours(recordings(dtype), sampling_rate=rate)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize(("kind", "more"), [(WAVE, {}), (MEL, SHORT)], ids=str)
def test_one_recording_in_whatever_form(kind: str, more: dict[str, Any]) -> None:
    ours, sound = AudioProcessor({"feature_extractor_type": kind, **more}), recordings()[1]
    (name, want), *_ = ours(sound).items()
    assert want.shape[0] == 1
    for form in (
        [sound],
        torch.from_numpy(sound),
        sound[None],
        sound.tolist(),
        [sound.tolist()],
        tuple(sound.tolist()),
    ):
        assert torch.equal(ours(form)[name], want)
    assert ours(sound, return_attention_mask=True)["attention_mask"][0, 0] == 1


@pytest.mark.parametrize(("kind", "more"), CONFIGS, ids=str)
def test_files_go_both_ways(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    theirs(kind, more).save_pretrained(tmp_path / "theirs")
    AudioProcessor.from_folder(tmp_path / "theirs").save(tmp_path / "ours")
    saved = [json.loads((tmp_path / who / "preprocessor_config.json").read_text()) for who in ("ours", "theirs")]
    assert saved[0] == saved[1]
    assert tf.AutoFeatureExtractor.from_pretrained(tmp_path / "ours").to_dict() == theirs(kind, more).to_dict()
    assert isinstance(load_processor(tmp_path / "ours"), AudioProcessor)


def test_a_whole_processor_file_and_the_oldest_one(tmp_path: Path) -> None:
    inner = {"feature_extractor_type": MEL, "feature_size": 128}
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": inner}))
    assert AudioProcessor.from_folder(tmp_path)(recordings()[1])["input_features"].shape == (1, 128, 3000)
    old = {"do_normalize": True, "feature_size": 1, "padding_side": "right", "return_attention_mask": False}
    assert AudioProcessor(old).kind == WAVE


def test_filters_by_hand() -> None:
    """A filter's peak lies at its corner of the mel scale, its area is one, and it is zero beyond its neighbours."""
    filters, hertz = mel_filters(8, 4000, 16000), np.linspace(0, 8000, 2001)
    mel = 15 + 27 * math.log(8.0) / math.log(6.4)
    corners = [m * 200 / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27) for m in np.arange(10) * mel / 9]
    assert corners[-1] == pytest.approx(8000)
    for number, filter in enumerate(filters):
        low, middle, high = corners[number : number + 3]
        assert hertz[filter.argmax()] == pytest.approx(middle, abs=2)
        assert np.trapezoid(filter, hertz) == pytest.approx(1, rel=1e-3)
        assert not filter[(hertz < low) | (hertz > high)].any()


def test_a_long_recording_is_cut_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    ours = AudioProcessor({"feature_extractor_type": MEL, **SHORT})
    long = recordings()[2]
    assert torch.equal(ours(long)["input_features"], ours(long[:32_000])["input_features"])
    assert "recording 0 is cut to its first 2 s" in caplog.text


BAD: list[tuple[Any, int, str]] = [
    (np.zeros(50, np.float32), 44100, "44100 samples a second, this model hears 16000"),
    ([], 16000, "no audio"),
    (np.zeros((0, 50)), 16000, "no audio"),
    ([[[0.1], [0.2, 0.3]]], 16000, "recording 0 holds lists of several lengths"),
    (np.zeros(0, np.float32), 16000, "recording 0 is empty"),
    ([np.zeros(9, np.float32), np.zeros(0, np.float32)], 16000, "recording 1 is empty"),
    (np.array([0.1, math.nan]), 16000, "recording 0 holds nan at sample 1"),
    ([np.zeros(9), np.array([math.inf])], 16000, "recording 1 holds inf at sample 0"),
    (np.zeros(50, np.int16), 16000, "holds int16"),
    (np.zeros((50, 2)), 16000, "looks like channels"),
    ([np.zeros((2, 50))], 16000, "is one channel"),
    (np.zeros((2, 3, 50)), 16000, "is one channel"),
    ("speech.wav", 16000, "is a str"),
]


@pytest.mark.parametrize(("audio", "rate", "said"), BAD, ids=lambda value: value if isinstance(value, str) else None)
@pytest.mark.parametrize("kind", [WAVE, MEL])
def test_bad_audio_is_one_line(kind: str, audio: Any, rate: int, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        AudioProcessor({"feature_extractor_type": kind})(audio, rate)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"feature_extractor_type": "WhisperFeatureExtracter"}, "did you mean"),
        ({"feature_size": 80}, "feature_extractor_type=None"),
        ({"feature_extractor_type": WAVE, "padding_side": "left"}, "padding_side='left'; only 'right'"),
        ({"feature_extractor_type": WAVE, "do_normalise": True}, "no key known here"),
        ({"feature_extractor_type": WAVE, "do_normalize": 1}, "true or false"),
        ({"feature_extractor_type": MEL, "dither": 0.1}, "dither=0.1; only 0.0"),
        ({"feature_extractor_type": MEL, "hop_length": 0}, "hop_length=0; it is a whole number"),
        ({"feature_extractor_type": MEL, "n_samples": 16000}, "n_samples=16000, but the other keys make it 480000"),
        ({"feature_extractor_type": MEL, "sampling_rate": 8000}, "at least 16000"),
        ({"feature_extractor_type": MEL, "padding_value": "0"}, "it is a number"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_files_are_one_line(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=said) as caught:
        AudioProcessor.from_folder(tmp_path)
    assert "preprocessor_config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="copy it from the model"):
        AudioProcessor.from_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("[")
    with pytest.raises(CheckpointError, match="JSON"):
        AudioProcessor.from_folder(tmp_path)
