"""Recordings from files: one channel, numbers from -1 to 1, at the rate a model hears."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlplatform.errors import DataError

Samples = NDArray[np.float32]


def read(value: Any) -> tuple[Samples, int]:
    """Return the samples (n,) and the samples a second of a file, its bytes, or an array at 16 kHz.

    Several channels become their mean.

    Raises:
        ValueError: it is no sound, an empty one, or one cut short. DataError: soundfile is not installed.
    """
    if isinstance(value, np.ndarray):
        if value.ndim != 1 or not len(value):
            raise ValueError(f"is an array of shape {value.shape}, and samples (n,) are needed")
        return value.astype(np.float32), 16000
    try:
        import soundfile
    except ImportError:
        raise DataError("audio files need soundfile; install it with: pip install 'mlplatform[audio]'") from None
    name = value if isinstance(value, Path) else "the recording"
    try:
        with soundfile.SoundFile(value if isinstance(value, Path) else io.BytesIO(value)) as file:
            stated = file.frames
            samples = file.read(dtype="float32", always_2d=True)
            rate = file.samplerate
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"{name}: not a readable recording: {error}") from None
    if not len(samples):
        raise ValueError(f"{name}: the recording has no samples")
    if len(samples) < stated:
        raise ValueError(f"{name}: the recording is cut short: {len(samples)} of {stated} samples are there")
    if not np.isfinite(samples).all():
        raise ValueError(f"{name}: the recording holds NaN or infinity")
    return samples.mean(axis=1, dtype=np.float32), rate


def at_rate(value: Any, rate: int) -> Samples:
    """Return a recording's samples at `rate` a second, resampled where it has another (a polyphase filter).

    Raises:
        ValueError: as `read`.
    """
    samples, own = read(value)
    if own == rate:
        return samples
    from math import gcd

    try:
        from scipy.signal import resample_poly
    except ImportError:
        raise DataError("resampling needs scipy; install it with: pip install 'mlplatform[audio]'") from None
    shared = gcd(own, rate)
    return resample_poly(samples, rate // shared, own // shared).astype(np.float32)
