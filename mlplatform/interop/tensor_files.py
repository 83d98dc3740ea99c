"""Safetensors files written tensor by tensor: nothing is held twice, and their checksum is taken on the way."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from io import RawIOBase
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 1 << 24
WORDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.complex64: "C64",
}  # fmt: skip
"""What safetensors calls each type."""
TYPES = {word: dtype for dtype, word in WORDS.items()}


class Entry(NamedTuple):
    """What a file's header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Written(NamedTuple):
    """What a manifest says of a file."""

    bytes: int
    sha256: str


def entries_of(tensors: Mapping[str, Tensor]) -> dict[str, Entry]:
    """Return the header entries of tensors."""
    return {name: Entry(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def in_file_order(entries: Mapping[str, Entry]) -> list[str]:
    """Return names in the order a file holds them: wider types first, so that each is aligned to its own width."""
    return sorted(entries, key=lambda name: -entries[name].dtype.itemsize)


def write_tensors(
    path: Path, entries: Mapping[str, Entry], tensors: Iterable[Tensor], metadata: Mapping[str, str] | None = None
) -> Written:
    """Write and flush a file of tensors.

    Args:
        entries: the header. tensors: one for each entry, `in_file_order`; each is let go once it is written.

    Raises:
        OSError: the disk is full or refuses.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        size += _put(file, memoryview(_header(entries, metadata or {})), digest)
        for name, tensor in zip(in_file_order(entries), tensors, strict=True):
            if (tensor.dtype, tuple(tensor.shape)) != entries[name]:
                raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, announced as {entries[name]}")
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            size += _put(file, data.data, digest)
        os.fsync(file.fileno())
    return Written(size, digest.hexdigest())


def _put(file: RawIOBase, data: memoryview, digest: hashlib._Hash) -> int:
    """Write all of it; a thread that trains meanwhile is let through at every call."""
    for start in range(0, len(data), CHUNK):
        part = data[start : start + CHUNK]
        digest.update(part)
        while part:
            part = part[file.write(part) or 0 :]
    return len(data)


def _header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    described: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in in_file_order(entries):
        entry = entries[name]
        offsets = [end, end + entry.nbytes]
        described[name] = {"dtype": WORDS[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
        end += entry.nbytes
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
