"""Recordings from files: one channel, numbers from -1 to 1, at the rate a model hears."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mlplatform.errors import SpecError

Samples = NDArray[np.float32]
RATE = 16000
"""Samples a second of an array that comes without its rate."""


def read(value: Any) -> tuple[Samples, int]:
    """Return the samples (n,) and the samples a second of a file, its bytes, or an array at 16 kHz.

    Several channels become their mean.

    Raises:
        ValueError: it is no sound, an empty one, or one cut short. SpecError: soundfile is not installed.
    """
    if isinstance(value, np.ndarray):
        if value.ndim != 1 or not len(value):
            raise ValueError(f"is an array of shape {value.shape}, and samples (n,) are needed")
        return value.astype(np.float32), RATE
    try:
        import soundfile
    except ImportError:
        raise SpecError("audio files need soundfile; install it with: pip install 'mlplatform[audio]'") from None
    name = value if isinstance(value, Path) else "the recording"
    try:
        with value.open("rb") if isinstance(value, Path) else io.BytesIO(value) as data:
            _check_whole(data)
        with soundfile.SoundFile(value if isinstance(value, Path) else io.BytesIO(value)) as file:
            stated = file.frames
            samples = file.read(dtype="float32", always_2d=True)
            rate = file.samplerate
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{name}: not a readable recording, or one cut short: {error}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not len(samples):
        raise ValueError(f"{name}: the recording has no samples")
    if len(samples) < stated:
        raise ValueError(f"{name}: the recording is cut short: {len(samples)} of {stated} samples are there")
    if not np.isfinite(samples).all():
        raise ValueError(f"{name}: the recording holds NaN or infinity")
    return samples.mean(axis=1, dtype=np.float32), rate


def _check_whole(file: BinaryIO) -> None:
    """Raise ValueError for a WAV or AIFF file that ends before its header says so, which libsndfile takes as it is."""
    start = file.read(8)
    stated = 8 + int.from_bytes(start[4:], "little" if start[:4] == b"RIFF" else "big")
    held = file.seek(0, io.SEEK_END)
    unknown = stated >= 1 << 32  # written to a pipe
    if start[:4] in (b"RIFF", b"FORM") and held < stated and not unknown:
        raise ValueError(f"the recording is cut short: {held} of {stated} bytes are there")


def length(value: Any, rate: int) -> int:
    """Return how many samples `at_rate` gives, by what a file's header says. Raises as `read`."""
    if not isinstance(value, Path):
        samples, own = read(value)
        return -(-len(samples) * rate // own)
    try:
        import soundfile
    except ImportError:
        raise SpecError("audio files need soundfile; install it with: pip install 'mlplatform[audio]'") from None
    try:
        about = soundfile.info(value)
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{value}: not a readable recording, or one cut short: {error}") from None
    return -(-about.frames * rate // about.samplerate)


def at_rate(value: Any, rate: int) -> Samples:
    """Return a recording's samples at `rate` a second, resampled where it has another (a polyphase filter).

    Raises:
        ValueError: as `read`.
    """
    return resampled(*read(value), rate)


def resampled(samples: Samples, own: int, rate: int) -> Samples:
    """Return samples (n,) taken `own` times a second as they would be at `rate`."""
    if own == rate:
        return samples
    from math import gcd

    try:
        from scipy.signal import resample_poly
    except ImportError:
        raise SpecError("resampling needs scipy; install it with: pip install 'mlplatform[audio]'") from None
    shared = gcd(own, rate)
    return resample_poly(samples, rate // shared, own // shared).astype(np.float32)


def save(path: Path, samples: Samples, rate: int) -> None:
    """Write samples as a WAV file of 16 bits."""
    import wave

    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, len(samples), "NONE", ""))
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
