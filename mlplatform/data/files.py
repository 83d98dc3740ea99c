"""Local files: finding them, hashing them, and reading text strictly."""

from __future__ import annotations

import codecs
import contextlib
import glob
import gzip
import hashlib
import io
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from mlplatform.cached import write_whole
from mlplatform.errors import DataError, did_you_mean, listing
from mlplatform.places import PACKAGE, cache

SHIPPED = PACKAGE / "data" / "texts"
FETCHED = "fetched:"
"""Before the name of a set that `mlplatform data fetch` has put in the cache, and a file of it."""
BLOCK = 1 << 20
"""Bytes read at a time."""
LONGEST_LINE = 1 << 28
SETTLED = 2.0
"""Seconds after which a file's times tell two changes apart."""


def find(path: str | list[str], suffixes: tuple[str, ...], key: str) -> list[Path]:
    """Return the files that paths, folders, globs, `shipped:NAME` and `fetched:SET/FILE` name, each once, in order.

    Raises:
        DataError: nothing is there, or it may not be read; names the path and the config key.
    """
    found: dict[Path, None] = {}
    for one in [path] if isinstance(path, str) else path:
        try:
            found.update(dict.fromkeys(_find_one(one, suffixes, key)))
        except OSError as error:
            raise DataError(f"{key}: {one}: {error.strerror}") from None
    for file in found:
        if not os.access(file, os.R_OK, effective_ids=True):
            raise DataError(f"{key}: {file}: no permission to read this file")
    return list(found)


def find_folder(path: str, key: str) -> Path:
    """Return the folder a path or `fetched:SET[/FOLDER]` names. Raises DataError that names the path and config key."""
    if path.startswith(FETCHED):
        from mlplatform.data.sets.fetching import resolve

        path = str(resolve(path.removeprefix(FETCHED)))
    folder = Path(path).expanduser()
    if not folder.is_dir():
        told = f"{folder} is a file" if folder.exists() else _nothing_at(folder)
        raise DataError(f"{key}: {told}; a folder is needed")
    if not os.access(folder, os.R_OK | os.X_OK, effective_ids=True):
        raise DataError(f"{key}: {folder}: no permission to read this folder")
    return folder


def check_apart(splits: Mapping[str, list[Path]]) -> None:
    """Raise DataError where one file is in two splits: what is held out would be trained on."""
    owner: dict[Path, str] = {}
    for split, files in splits.items():
        for file in files:
            if (other := owner.setdefault(file.resolve(), split)) != split:
                told = f"{file} is also one of the {other} files; name the files apart, by a glob such as train-*.jsonl"
                raise DataError(f"data.{split}: {told}")


def _find_one(text: str, suffixes: tuple[str, ...], key: str) -> list[Path]:
    if text.startswith("shipped:"):
        name = text.removeprefix("shipped:")
        there = sorted(p.name for p in SHIPPED.iterdir() if p.name.endswith(suffixes) and p.suffix != ".md")
        if name not in there:
            raise DataError(f"{key}: no shipped text '{name}'{did_you_mean(name, there)}; there are {listing(there)}")
        return [SHIPPED / name]
    if text.startswith(FETCHED):
        from mlplatform.data.sets.fetching import resolve

        return _find_one(str(resolve(text.removeprefix(FETCHED))), suffixes, key)
    path = Path(text).expanduser()
    if path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK, effective_ids=True):
            raise DataError(f"{key}: {path}: no permission to read this folder")
        if files := sorted(p for p in path.rglob("*") if p.name.endswith(suffixes) and p.is_file()):
            return files
        raise DataError(f"{key}: the folder {path} has no file that ends in {listing(suffixes)}; name a glob instead")
    if path.is_file():
        return [path]
    if path.exists():
        raise DataError(f"{key}: {path} is neither a file nor a folder")
    if glob.has_magic(text):
        if files := sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file()):  # noqa: PTH207
            return files
        raise DataError(f"{key}: no file matches '{text}' (looked from {Path.cwd()})")
    raise DataError(f"{key}: {_nothing_at(path)}")


def _nothing_at(path: Path) -> str:
    near = did_you_mean(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
    return f"there is no file or folder {path}{near} (looked from {Path.cwd()})"


def fingerprint(file: Path) -> str:
    """Return the sha256 of a file's bytes.

    The hash is remembered with the file's size, times and inode, so that a large file is read once and not by every
    rank. It is not trusted for a file changed within the last two seconds, whose times may not tell.
    """
    try:
        state = file.stat()
        known = cache() / "hashes" / f"{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:32]}.json"
        stamp = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        try:
            note = json.loads(known.read_text())
            if note["stamp"] == stamp:
                return note["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    if time.time() - state.st_ctime > SETTLED and file.stat().st_ctime_ns == state.st_ctime_ns:
        try:
            known.parent.mkdir(parents=True, exist_ok=True)
            write_whole(known, json.dumps({"stamp": stamp, "sha256": digest}).encode())
        except OSError:
            pass  # only a convenience: the next reader hashes again
    return digest


def text_blocks(file: Path, block: int = BLOCK) -> Iterator[str]:
    """Yield the text of a UTF-8 file, plain or gzipped, piece by piece.

    Raises:
        DataError: the file is empty, blank, binary or of another encoding; names it and the byte offset.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, blank = 0, True
    with _opened(file) as stream:
        if stream.peek(3)[:3] == codecs.BOM_UTF8:
            offset = len(stream.read(3))
        start = offset
        while data := stream.read(block):
            if (zero := data.find(b"\0")) >= 0:
                wrong = f"offset {offset + zero}: a zero byte; this is a binary file (or UTF-16), not UTF-8 text"
                raise DataError(f"{file}: {wrong}")
            text = _decoded(file, decoder, data, offset)
            blank = blank and not text.strip()
            offset += len(data)
            yield text
        _decoded(file, decoder, b"", offset)
    if offset == start:
        raise DataError(f"{file}: offset {offset}: the file is empty; a text is needed")
    if blank:
        raise DataError(f"{file}: offset {start} to {offset}: nothing but white space; a text is needed")


def lines(file: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, byte offset, line) of a file, plain or gzipped; blank lines are left out, and so is
    the mark that says a file is UTF-8.

    Raises:
        DataError: a line is longer than 256 MiB, as when a JSON array is taken for JSON Lines.
    """
    number, offset = 0, 0
    with _opened(file) as stream:
        if stream.peek(3)[:3] == codecs.BOM_UTF8:
            offset = len(stream.read(3))
        while line := stream.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE:
                raise DataError(
                    f"{file}: line {number} is longer than {LONGEST_LINE >> 20} MiB; one row a line is needed"
                )
            if line.strip():
                yield number, offset, line
            offset += len(line)


def not_utf8(byte: int, offset: int) -> str:
    """Say that a byte is no UTF-8, and what helps."""
    return f"offset {offset}: byte 0x{byte:02x} is not UTF-8; if it is Latin-1, `iconv -f latin1 -t utf-8` converts it"


def _decoded(file: Path, decoder: codecs.IncrementalDecoder, data: bytes, offset: int) -> str:
    held = len(decoder.getstate()[0])
    try:
        return decoder.decode(data, final=not data)
    except UnicodeDecodeError as error:
        wrong = not_utf8(error.object[error.start], offset - held + error.start)
        raise DataError(f"{file}: {wrong}") from None


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[io.BufferedReader]:
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            yield cast(io.BufferedReader, stream)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file}: a damaged gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
