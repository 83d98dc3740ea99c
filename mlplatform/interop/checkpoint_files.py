"""A folder of safetensors files: checked before anything is allocated, read tensor by tensor, written whole."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mlplatform.errors import CheckpointError, listing
from mlplatform.interop.tensor_files import Entry, in_file_order, write_tensors

MOST_HEADER = 100 * 2**20
MOST_JSON = 20 * 2**20
WINDOW = 64 * 2**20
"""Bytes read through one memory map before it is opened anew, so that its pages don't add up to a second copy."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
SIZES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of a checkpoint folder. Raises CheckpointError for a missing, huge or broken file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; a checkpoint folder has config.json and *.safetensors")
    if path.stat().st_size > MOST_JSON:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes; no real one is over {MOST_JSON}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: a JSON object is needed, not a {type(data).__name__}")
    return data


def check_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return the tensors a file claims to hold (dtype, shape, offsets), every claim checked against its size.

    Raises:
        CheckpointError: the file is cut short, its header is absurd, or its tensors overlap or leave the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if len(start) < 8 or length < 2 or length > MOST_HEADER or 8 + length > size:
            said = f"a header of {length} bytes in a file of {size}" if len(start) == 8 else f"a file of {size} bytes"
            raise CheckpointError(f"{path}: {said}; it is cut short or no safetensors file; fetch it again")
        try:
            header = json.loads(file.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            spans = sorted((*_span(entry), name) for name, entry in tensors.items())
        except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path}: its header can't be read ({error!r:.80}); fetch it again") from None
    end = 0
    for first, last, name in spans:
        if first != end:
            raise CheckpointError(f"{path}: '{name}' starts at byte {first}, the tensor before it ends at {end}")
        end = last
    if 8 + length + end != size:
        raise CheckpointError(f"{path}: tensors for {8 + length + end} bytes in a file of {size}; fetch it again")
    return tensors


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    first, last = entry["data_offsets"]
    count = 1
    for length in entry["shape"]:
        if not isinstance(length, int) or length < 0:
            raise ValueError(f"shape {entry['shape']}")
        count *= length
    if count * SIZES[entry["dtype"]] != last - first:
        raise ValueError(f"{entry['dtype']} {entry['shape']} in {last - first} bytes")
    return first, last


class CheckpointFolder:
    """The tensors of one checkpoint, in one file or several.

    Raises:
        CheckpointError: no safetensors, a pickle instead, an index that leaves the folder or names a missing file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.dtypes: dict[str, str] = {}
        for path in self._shards():
            for name, entry in check_header(path).items():
                if name in self.files:
                    raise CheckpointError(f"{path}: '{name}' is in {self.files[name].name} too")
                self.files[name], self.dtypes[name] = path, entry["dtype"]
                self.shapes[name] = torch.Size(entry["shape"])
        self._open: tuple[Path, Any] | None = None
        self._read = 0

    def read(self, name: str) -> Tensor:
        """Return one tensor as a view of the memory map: copy what is to be kept."""
        path = self.files[name]
        if self._open is None or self._open[0] != path or self._read > WINDOW:
            try:
                self._open, self._read = (path, safe_open(path, "pt")), 0
            except SafetensorError as error:
                raise CheckpointError(f"{path}: {error}") from None
        tensor = self._open[1].get_tensor(name)
        self._read += tensor.nbytes
        return tensor

    def close(self) -> None:
        self._open = None

    def _shards(self) -> list[Path]:
        index = self.folder / INDEX
        if index.is_file():
            names = sorted(set((read_json(index).get("weight_map") or {}).values()))
            return [self._shard(str(name)) for name in names]
        if (self.folder / SINGLE).is_file():
            return [self.folder / SINGLE]
        pickles = sorted(p.name for p in self.folder.iterdir() if p.suffix in PICKLES) if self.folder.is_dir() else []
        if pickles:
            raise CheckpointError(
                f"{self.folder / pickles[0]}: a pickle can run code, so it is not opened; convert it first: "
                "transformers' from_pretrained(...).save_pretrained(...) writes safetensors"
            )
        raise CheckpointError(f"{self.folder}: neither {SINGLE} nor {INDEX} is there")

    def _shard(self, name: str) -> Path:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{self.folder / INDEX}: '{name}' is no file of this folder; nothing was read")
        path = self.folder / name
        if not path.is_file():
            raise CheckpointError(f"{self.folder / INDEX}: '{name}' is not there; fetch it again")
        return path


def write_folder(
    folder: Path,
    entries: Mapping[str, Entry],
    read: Callable[[str], Tensor],
    texts: dict[str, str],
    shard_size: int,
    name: str = SINGLE,
) -> None:
    """Write tensors as shards of at most `shard_size` bytes (a single one is called `name`), and text files, all of
    them or none. A tensor is read when it is written, and none is kept.

    A folder that is there already gets the new files one by one, each renamed into place, config.json last.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write_shards(temporary, entries, read, shard_size, name)
        for file, text in texts.items():
            (temporary / file).write_text(text, encoding="utf-8")
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        temporary.chmod(0o755)
        if folder.is_dir():
            _move_into(temporary, folder)
        else:
            temporary.rename(folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: can't be written: {error.strerror or error}; nothing was changed there"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_shards(
    folder: Path, entries: Mapping[str, Entry], read: Callable[[str], Tensor], shard_size: int, name: str
) -> None:
    shards = list(_in_shards(entries, shard_size))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else name
        write_tensors(folder / file, shard, map(read, in_file_order(shard)), {"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(entry.nbytes for entry in entries.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _in_shards(entries: Mapping[str, Entry], shard_size: int) -> Iterator[dict[str, Entry]]:
    shard: dict[str, Entry] = {}
    held = 0
    for name, entry in entries.items():
        if shard and held + entry.nbytes > shard_size:
            yield shard
            shard, held = {}, 0
        shard[name] = entry
        held += entry.nbytes
    yield shard


def _move_into(temporary: Path, folder: Path) -> None:
    new = {path.name for path in temporary.iterdir()}
    for path in sorted(temporary.iterdir(), key=lambda p: (p.name == "config.json", p.name == INDEX, p.name)):
        path.replace(folder / path.name)
    for path in folder.glob("model*.safetensors*"):
        if path.name not in new:
            path.unlink()


def explain_strangers(names: list[str], folder: Path, where: dict[str, Path], others: list[str]) -> CheckpointError:
    """Return the error for tensors that no rule names."""
    files = listing(sorted({where[n].name for n in names if n in where}) or [folder.name])
    have = f"; {listing(others)} {'has' if len(others) == 1 else 'have'} one for it" if others else ""
    many = f"{len(names)} tensors of {files} have" if len(names) > 1 else f"1 tensor of {files} has"
    return CheckpointError(f"{many} no rule under hf.weights, the first is '{names[0]}'{have}")
