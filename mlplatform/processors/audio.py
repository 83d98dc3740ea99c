"""Recordings to what a model reads of them, by Hugging Face's preprocessor_config.json."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlplatform.cached import write_whole
from mlplatform.errors import CheckpointError, DataError, did_you_mean, listing

log = logging.getLogger(__name__)
FILE, WHOLE = "preprocessor_config.json", "processor_config.json"
WAVE, MEL = "Wav2Vec2FeatureExtractor", "WhisperFeatureExtractor"
KINDS: dict[str, dict[str, Any]] = {
    WAVE: {"feature_size": 1, "do_normalize": True},
    MEL: {"feature_size": 80, "hop_length": 160, "chunk_length": 30, "n_fft": 400},
}
"""What each class of transformers does where its file says nothing."""
ALL: dict[str, Any] = {"sampling_rate": 16000, "padding_value": 0.0, "return_attention_mask": False}
ONE_VALUE: dict[str, dict[str, Any]] = {
    WAVE: {"padding_side": "right", "feature_size": 1},
    MEL: {"padding_side": "right", "dither": 0.0, "do_normalize": False},
}
INERT = {"feature_extractor_type", "processor_class", "auto_map", "return_tensors", "padding", "truncation"}
DERIVED = {"n_samples", "nb_max_frames", "mel_filters"}
"""Keys of Whisper's files that follow from the others."""
HIGHEST = 8000.0
"""Hertz: where Whisper's filters end."""
CHANNELS = 8
"""An array with so few numbers a row holds channels, not recordings."""

Wave = NDArray[np.float32]
Sound = np.ndarray | Tensor | Sequence[float]


class AudioProcessor:
    """Recordings to `input_values` (wav2vec 2.0, HuBERT) or `input_features` (Whisper), as transformers' classes do.

    Args:
        config: the contents of a preprocessor_config.json; `feature_extractor_type` says whose defaults it stands on.
        source: names it in messages.

    Raises:
        CheckpointError: a kind or key this class doesn't know, or a value out of range.
    """

    def __init__(self, config: Mapping[str, Any], source: str = FILE) -> None:
        self.kind = kind_of(config, source)
        self.config: dict[str, Any] = {**config, "feature_extractor_type": self.kind}
        self.settings = _settings(self.kind, config, source)

    @classmethod
    def from_folder(cls, folder: str | Path) -> AudioProcessor:
        """Read a folder's preprocessor_config.json, or the feature extractor within its processor_config.json.

        Raises:
            CheckpointError: neither file is there or readable, or it says what can't be done.
        """
        path, whole = Path(folder) / FILE, Path(folder) / WHOLE
        if path.is_file():
            return cls(_read(path), str(path))
        config = _read(whole).get("feature_extractor") if whole.is_file() else None
        if not isinstance(config, Mapping):
            missing = f"no {FILE}, nor a {WHOLE} with a feature_extractor"
            raise CheckpointError(f"{folder}: {missing}; copy it from the model")
        return cls(config, str(whole))

    def save(self, folder: str | Path) -> None:
        """Write preprocessor_config.json, which transformers' AutoFeatureExtractor reads."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_whole(Path(folder) / FILE, (json.dumps(self.config, indent=2, sort_keys=True) + "\n").encode())

    def __call__(
        self, audio: Sound | Sequence[Sound], sampling_rate: int = 16000, return_attention_mask: bool | None = None
    ) -> dict[str, Tensor]:
        """Prepare one recording or several.

        Args:
            audio: numbers from -1 to 1 at a constant rate, one channel; several recordings in a list, or as the rows
                of an array.
            sampling_rate: numbers a second.
            return_attention_mask: None for what the file says.

        Returns:
            input_values (recordings, samples), padded at the end to the longest; or input_features (recordings, bins,
            frames), padded or cut to the length the file says. And attention_mask, 1 where a sample, or a frame's
            first one, is no padding. As with transformers, `do_normalize` without a mask takes the mean and the
            variance of a recording with its padding.

        Raises:
            DataError: another sampling rate, no recording, an empty one, one with several channels, with whole
                numbers, or with NaN or infinity.
        """
        told = self.settings
        if sampling_rate != told["sampling_rate"]:
            raise DataError(
                f"the audio has {sampling_rate} samples a second, this model hears {told['sampling_rate']}; resample it"
            )
        waves = [wave(sound, f"recording {number}") for number, sound in enumerate(_several(audio))]
        if not waves:
            raise DataError("no audio was given")
        masked = told["return_attention_mask"] if return_attention_mask is None else return_attention_mask
        return self._features(waves, masked) if self.kind == MEL else self._values(waves, masked)

    def _values(self, waves: list[Wave], masked: bool) -> dict[str, Tensor]:
        values, mask = padded(waves, max(len(one) for one in waves), self.settings["padding_value"])
        if self.settings["do_normalize"]:
            for row, one in zip(values, waves, strict=True):
                real = row[: len(one)] if masked else row
                real[:] = (real - real.mean()) / np.sqrt(real.var() + 1e-7)
        return _with_mask({"input_values": torch.from_numpy(values)}, mask if masked else None)

    def _features(self, waves: list[Wave], masked: bool) -> dict[str, Tensor]:
        told = self.settings
        samples, hop = told["chunk_length"] * told["sampling_rate"], told["hop_length"]
        for number, one in enumerate(waves):
            if len(one) > samples:
                log.warning("recording %d is cut to its first %d s", number, told["chunk_length"])
        values, mask = padded([one[:samples] for one in waves], samples, told["padding_value"])
        filters = torch.from_numpy(mel_filters(told["feature_size"], told["n_fft"], told["sampling_rate"])).float()
        features = log_mel(torch.from_numpy(values), filters, told["n_fft"], hop)
        return _with_mask({"input_features": features}, mask[:, ::hop][:, : features.shape[2]] if masked else None)


def log_mel(waves: Tensor, filters: Tensor, window: int, hop: int) -> Tensor:
    """Return Whisper's features of waves (recordings, samples): (recordings, bins, samples // hop). arXiv:2212.04356

    Log10 of the power in each filter's band, no more than 8 below the recording's highest, then (x + 4) / 4.

    Args:
        filters: (bins, window // 2 + 1). window: samples of a frame, under a Hann window. hop: from frame to frame.
    """
    spectrum = torch.stft(waves, window, hop, window=torch.hann_window(window), return_complex=True)[..., :-1]
    power = filters @ (spectrum.abs() ** 2).contiguous()
    loud = power.clamp(min=1e-10).log10()
    return (torch.maximum(loud, loud.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


@lru_cache
def mel_filters(bins: int, window: int, sampling_rate: int) -> NDArray[np.float64]:
    """Return triangles over the frequencies of a spectrum, (bins, window // 2 + 1), each of area one (Slaney, 1998).

    Their corners lie alike on Slaney's mel scale from 0 to 8000 Hz: linear to 1000 Hz, 15 mel, logarithmic above.
    """
    step = np.log(6.4) / 27.0
    highest = 15.0 + np.log(HIGHEST / 1000.0) / step
    mels = np.linspace(0.0, highest, bins + 2)
    corners = np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp(step * (mels - 15.0)))
    places = np.linspace(0.0, sampling_rate // 2, window // 2 + 1)
    ramps = corners[:, None] - places
    gaps = np.diff(corners)[:, None]
    triangles = np.maximum(0.0, np.minimum(-ramps[:-2] / gaps[:-1], ramps[2:] / gaps[1:]))
    return triangles * (2.0 / (corners[2:] - corners[:-2]))[:, None]


def padded(waves: Sequence[Wave], length: int, value: float) -> tuple[Wave, NDArray[np.int32]]:
    """Return waves filled up with a value at the end, (recordings, length), and 1 where there is none of it."""
    values = np.full((len(waves), length), value, np.float32)
    mask = np.zeros(values.shape, np.int32)
    for number, one in enumerate(waves):
        values[number, : len(one)] = one
        mask[number, : len(one)] = 1
    return values, mask


def wave(sound: Sound, name: str) -> Wave:
    """Return a recording as numbers of 32 bits. Raises DataError for what can't be one; see `AudioProcessor`."""
    try:
        array = sound.numpy(force=True) if isinstance(sound, Tensor) else np.asarray(sound)
    except ValueError:
        raise DataError(f"{name} holds lists of several lengths; it is one channel, (samples,)") from None
    if array.ndim != 1:
        raise DataError(f"{name} has shape {array.shape}; it is one channel, (samples,): take one, or their mean")
    if not len(array):
        raise DataError(f"{name} is empty")
    if array.dtype.kind != "f":
        raise DataError(
            f"{name} holds {array.dtype}; samples are numbers from -1 to 1: divide those of 16 bits by 32768"
        )
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        place = int(np.argmin(np.isfinite(array)))
        raise DataError(f"{name} holds {array[place]} at sample {place}")
    return array


def _several(audio: Any) -> Sequence[Any]:
    """Return the recordings of what a caller gave: one, a list of them, or the rows of an array."""
    if isinstance(audio, (np.ndarray, Tensor)):
        if audio.ndim != 2:
            return [audio]
        if audio.shape[1] <= CHANNELS < audio.shape[0]:
            raise DataError(
                f"the audio has shape {tuple(audio.shape)}, which looks like channels; take one, or their mean"
            )
        return audio  # type: ignore[return-value]
    if not isinstance(audio, Sequence) or isinstance(audio, (str, bytes)):
        raise DataError(f"the audio is a {type(audio).__name__}; give an array of samples, or a list of them")
    first = audio[0] if len(audio) else None
    inner = first.ndim > 0 if isinstance(first, (np.ndarray, Tensor)) else isinstance(first, Sequence)
    return audio if inner or first is None else [audio]


def _with_mask(done: dict[str, Tensor], mask: NDArray[np.int32] | None) -> dict[str, Tensor]:
    return done if mask is None else {**done, "attention_mask": torch.from_numpy(np.ascontiguousarray(mask))}


def kind_of(config: Mapping[str, Any], source: str) -> str:
    """Return the class of transformers a file was written by; the oldest files of wav2vec 2.0 don't say theirs."""
    kind = config.get("feature_extractor_type")
    if kind is None and config.get("feature_size") == 1:
        return WAVE
    if kind not in KINDS:
        near = did_you_mean(str(kind), KINDS)
        raise CheckpointError(f"{source}: feature_extractor_type={kind!r}{near}; known are {listing(KINDS)}")
    return kind


def _settings(kind: str, config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return what a file means, with all that it leaves out. Raises CheckpointError for what it can't mean here."""
    said, one = {**ALL, **KINDS[kind]}, ONE_VALUE[kind]
    for key, value in config.items():
        if key in one and value != one[key]:
            raise CheckpointError(f"{source}: {key}={value!r}; only {one[key]!r} is known here")
        if key not in said and key not in one and key not in INERT and not (kind == MEL and key in DERIVED):
            raise CheckpointError(f"{source}: {key}={value!r} is no key known here{did_you_mean(key, said)}")
        if key in said:
            _check(key, value, said[key], source)
            said[key] = value
    if kind == MEL:
        _check_lengths(said, config, source)
    return said


def _check(key: str, value: Any, default: Any, source: str) -> None:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise CheckpointError(f"{source}: {key}={value!r}; it is true or false")
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise CheckpointError(f"{source}: {key}={value!r}; it is a number")
    elif isinstance(default, int) and (not isinstance(value, int) or value < 1):
        raise CheckpointError(f"{source}: {key}={value!r}; it is a whole number, 1 or more")


def _check_lengths(said: Mapping[str, Any], config: Mapping[str, Any], source: str) -> None:
    samples = said["chunk_length"] * said["sampling_rate"]
    follow = {"n_samples": samples, "nb_max_frames": samples // said["hop_length"]}
    for key, value in follow.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{source}: {key}={config[key]!r}, but the other keys make it {value}")
    if said["sampling_rate"] < 2 * HIGHEST:
        raise CheckpointError(
            f"{source}: sampling_rate={said['sampling_rate']}; the filters end at {HIGHEST:g} Hz, so it is at least "
            f"{2 * HIGHEST:g}"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: it holds {type(config).__name__}, not the keys of a preprocessor")
    return config
