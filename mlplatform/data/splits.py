"""Which documents and records are held out: a function of their content alone."""

from __future__ import annotations

import zlib


def is_validation(text: str, share: float) -> bool:
    """Whether a document belongs to the validation split: its CRC-32 lies in the lowest `share` of all values.

    Neither the order of documents nor what else is in the data matters, and equal documents fall on one side.
    """
    return drawn(text.encode()) < share


def drawn(content: bytes) -> float:
    """Return the number from 0 to 1 that some content draws: its CRC-32 as a share of all values."""
    return zlib.crc32(content) / 2**32
