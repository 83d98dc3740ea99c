"""Pictures and sound of records that have no file of their own, written beside what a model says of them."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np

from mlplatform.data.sound import RATE

SIGNATURES = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3", b"\xff\xfb": ".mp3"}


def keep(value: Any, path: Path) -> Path | None:
    """Write a value as a file and return it; None where it is neither picture nor sound.

    Args:
        value: an image of Pillow, an array (height, width[, channels]) of bytes, one of samples (n,) at 16 kHz, or the
            bytes of a recording's file.
        path: the file without its suffix.
    """
    path.parent.mkdir(exist_ok=True)
    if isinstance(value, bytes):
        suffix = next((suffix for start, suffix in SIGNATURES.items() if value.startswith(start)), None)
        if suffix is not None:
            path.with_suffix(suffix).write_bytes(value)
        return path.with_suffix(suffix) if suffix else None
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind == "f":
        with wave.open(str(path.with_suffix(".wav")), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes((value.clip(-1, 1) * 32767).astype("<i2").tobytes())
        return path.with_suffix(".wav")
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim in (2, 3):
        from PIL import Image

        value = Image.fromarray(value)
    if not hasattr(value, "save"):
        return None
    value.save(path.with_suffix(".png"))
    return path.with_suffix(".png")
