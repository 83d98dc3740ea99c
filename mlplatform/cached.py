"""Folders that are built once and then shared: one lock, a temporary name, a rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from mlplatform.errors import DataError
from mlplatform.places import cache

log = logging.getLogger(__name__)


def cached_folder(
    group: str, key: str, build: Callable[[Path], None], damage: Callable[[Path], str | None], what: str
) -> Path:
    """Return the folder `<cache>/<group>/<key>`, built when it is not there.

    Processes that ask for it at once share one build: the others wait. The folder appears whole or not at all, and a
    damaged one is built again.

    Args:
        key: names the contents, so it must be a hash of all they are made from.
        build: fills an empty folder.
        damage: says what is wrong with a folder, or returns None.
        what: names the thing in messages: `tokens of data.jsonl`.

    Raises:
        DataError: the cache can't be written, or `build` raised one.
    """
    folder = cache() / group / key
    if folder.is_dir() and damage(folder) is None:
        return folder
    with _writing(folder, what):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / f".{key}.lock", what):
            _build_locked(folder, build, damage, what)
    return folder


def wrong_size(folder: Path, sizes: Mapping[str, int]) -> str | None:
    """Say which of a folder's files is missing, cut short or too long; None when all are as they should be."""
    for name, size in sizes.items():
        path = folder / name
        held = path.stat().st_size if path.is_file() else 0
        if held != size:
            return f"{name} has {held} of {size} bytes"
    return None


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _build_locked(folder: Path, build: Callable[[Path], None], damage: Callable[[Path], str | None], what: str) -> None:
    if folder.is_dir():
        if (wrong := damage(folder)) is None:
            return
        log.warning("the cached %s are damaged (%s): building them again", what, wrong)
        shutil.rmtree(folder)
    for left in folder.parent.glob(f".tmp-{folder.name}-*"):  # we hold the lock, so whoever began it is dead
        shutil.rmtree(left)
    temporary = folder.parent / f".tmp-{folder.name}-{os.getpid()}"
    temporary.mkdir()
    try:
        build(temporary)
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        temporary.rename(folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock, which the system frees even when its holder is killed."""
    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is making the %s: waiting for it", what)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _writing(folder: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        where = f"{folder.parent}: can't keep the {what}: {reason}"
        raise DataError(f"{where}; free space there, or set MLPLATFORM_CACHE to another folder") from None


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
