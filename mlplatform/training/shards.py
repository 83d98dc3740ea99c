"""Tensors spread over ranks: which piece a rank writes, and which it reads back, whatever wrote the file.

A checkpoint's tensors stand in `model.safetensors`, or, written by several ranks, in `model-00001-of-00002.safetensors`
and so on. A file that holds pieces says in its header where each belongs, under the key and in the form of
`torch.distributed.checkpoint`'s own safetensors files, whose reader reads these too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from mlplatform.errors import CheckpointError
from mlplatform.interop.checkpoint_files import WINDOW, check_header
from mlplatform.interop.tensor_files import TYPES, Entry

HEADER, OFFSETS, WHOLE = "DCP_SHARDING_INFO", "saved_offsets", "shape"
Extent = tuple[int, ...]


class Piece(NamedTuple):
    """A part of a tensor: its values, where they begin, and the shape of the whole."""

    values: Tensor
    offset: Extent
    whole: Extent


def is_spread(tensor: Tensor | Piece) -> bool:
    """Whether ranks hold different pieces of a tensor."""
    return isinstance(tensor, DTensor | Piece)


def own_pieces(tensors: Mapping[str, Tensor | Piece], rank: int) -> dict[str, Piece]:
    """Return what this rank writes: every element is written by one rank, whole tensors by rank 0."""
    found = {}
    writes, extent = cache(_writes), cache(compute_local_shape_and_global_offset)  # training waits: many lie alike
    for name, tensor in tensors.items():
        if isinstance(tensor, Piece):
            if tensor.values.numel():
                found[name] = tensor
        elif not isinstance(tensor, DTensor):
            if rank == 0:
                found[name] = Piece(tensor.detach(), (0,) * tensor.dim(), tuple(tensor.shape))
        elif writes(tensor.device_mesh, tensor.placements):
            shape, offset = extent(tensor.shape, tensor.device_mesh, tensor.placements)
            if math.prod(shape):
                found[name] = Piece(tensor.detach().to_local(), tuple(offset), tuple(tensor.shape))
    return found


def _writes(mesh: DeviceMesh, placements: tuple[Placement, ...]) -> bool:
    """Whether this rank is the first of those that hold the same piece; its mesh may be one of several rows."""
    if any(placement.is_partial() for placement in placements):
        raise CheckpointError("a tensor whose ranks hold parts of a sum can't be saved; reduce it first")
    coordinate = mesh.get_coordinate()
    return (
        coordinate is not None
        and 0 in mesh.mesh.flatten().tolist()
        and all(at == 0 for at, placement in zip(coordinate, placements, strict=True) if placement.is_replicate())
    )


def describe(pieces: Mapping[str, Piece]) -> dict[str, str]:
    """Return what a file of pieces says of them in its header."""
    told = {name: {OFFSETS: list(piece.offset), WHOLE: list(piece.whole)} for name, piece in pieces.items()}
    return {"format": "pt", HEADER: json.dumps(told)}


class _Found(NamedTuple):
    path: Path
    offset: Extent
    shape: Extent


class Stored(Mapping[str, Tensor]):
    """The tensors a checkpoint keeps under one name, such as `model`: read when they are asked for, none kept.

    Attributes:
        entries: type and whole shape of each.

    Raises:
        CheckpointError: a file is damaged, or the pieces of a tensor do not make it up.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self.entries: dict[str, Entry] = {}
        self._pieces: dict[str, dict[Extent, _Found]] = {}
        self._open: dict[Path, Any] = {}
        self._read = 0
        whole = folder / f"{stem}.safetensors"
        for path in [whole] if whole.is_file() else sorted(folder.glob(f"{stem}-*-of-*.safetensors")):
            self._add(path)
        for name, found in self._pieces.items():
            entry, held = self.entries[name], sum(math.prod(piece.shape) for piece in found.values())
            if held != math.prod(entry.shape):
                told = f"{held} of the {math.prod(entry.shape)} numbers of {name}"
                raise CheckpointError(f"{folder}: the files of {stem} hold {told}; one of them is missing")

    def _add(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            where = json.loads((file.metadata() or {}).get(HEADER, "{}"))
        for name, told in check_header(path).items():
            shape, place = tuple(told["shape"]), where.get(name, {})
            offset = tuple(place.get(OFFSETS, (0,) * len(shape)))
            self.entries[name] = Entry(TYPES[told["dtype"]], tuple(place.get(WHOLE, shape)))
            self._pieces.setdefault(name, {})[offset] = _Found(path, offset, shape)

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, name: str, offset: Extent | None = None, shape: Extent | None = None) -> Tensor:
        """Return a tensor, or the part of that shape that begins at an offset; nothing else is read."""
        entry = self.entries[name]
        shape = entry.shape if shape is None else shape
        offset = (0,) * len(shape) if offset is None else offset
        made = torch.empty(shape, dtype=entry.dtype)
        for piece in self._pieces[name].values():
            first = [max(a, b) for a, b in zip(offset, piece.offset, strict=True)]
            last = [min(a + n, b + m) for a, n, b, m in zip(offset, shape, piece.offset, piece.shape, strict=True)]
            if any(a >= b for a, b in zip(first, last, strict=True)):
                continue
            there = tuple(slice(a - b, c - b) for a, b, c in zip(first, piece.offset, last, strict=True))
            here = tuple(slice(a - b, c - b) for a, b, c in zip(first, offset, last, strict=True))
            made[here] = self._slice(piece.path, name, there)
        return made

    def like(self, name: str, target: Tensor | None) -> Tensor:
        """Return a tensor spread over ranks as `target` is, where the two have one shape; else all of it."""
        entry = self.entries[name]
        if not isinstance(target, DTensor) or tuple(target.shape) != entry.shape:
            return self.read(name)
        mesh, placements = target.device_mesh, target.placements
        shape, offset = compute_local_shape_and_global_offset(target.shape, mesh, placements)
        local = self.read(name, tuple(offset), tuple(shape)).to(target.to_local().device)
        return DTensor.from_local(local, mesh, placements, run_check=False, shape=target.shape, stride=target.stride())

    def _slice(self, path: Path, name: str, where: tuple[slice, ...]) -> Tensor:
        if self._read > WINDOW:  # the pages of a map count as memory until it is opened anew
            self._open, self._read = {}, 0
        try:
            if path not in self._open:
                self._open[path] = safe_open(path, "pt")
            file = self._open[path]
            part = file.get_slice(name)[where] if where else file.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: {error}") from None
        self._read += part.nbytes
        return part


class Unread(NamedTuple):
    """A stored tensor that is read when it is asked for."""

    stored: Stored
    name: str

    @property
    def shape(self) -> torch.Size:
        """Return the shape of all of it."""
        return torch.Size(self.stored.entries[self.name].shape)

    def whole(self) -> Tensor:
        """Return all of it."""
        return self.stored.read(self.name)

    def stretch(self, start: int, count: int) -> Tensor:
        """Return so many numbers of the flat tensor; only the rows that hold them are read."""
        if not self.shape:
            return self.whole().view(1)[start : start + count]
        row = math.prod(self.shape[1:])
        first, last = start // row, -(-(start + count) // row)
        rest = self.shape[1:]
        found = self.stored.read(self.name, (first, *[0] * len(rest)), (last - first, *rest))
        return found.flatten()[start - first * row :][:count]
