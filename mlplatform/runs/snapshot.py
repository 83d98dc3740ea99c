"""The code of a run that waits: copied when it is submitted, so that editing a checkout changes nothing of it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mlplatform import places
from mlplatform.errors import RunError

CODE = "code"
SOURCES = {".py", ".pyi", ".yaml", ".yml", ".json", ".toml", ".txt", ".md", ".tsv", ".csv", ".jinja"}
"""What is copied of a plugin and of a folder of options: no data and no weights."""
MOST = 32 << 20
"""Bytes of all of it. More is no code, and would be copied for every submission."""


def take(folder: Path, plugins: Iterable[str] = (), config_dirs: Iterable[str] = ()) -> dict[str, Any]:
    """Copy the code into a run's folder, in the place of what was copied before; return what the record keeps of it.

    The copy is laid out as a wheel is: `mlplatform/` with `share/conf` and `share/recipes` in it, the plugins beside
    it, and under `config_dirs/` the user's folders of options, to be read: the run's own config is resolved.

    Raises:
        RunError: it is too large, or can't be written.
    """
    digest, size, number = hashlib.sha256(), 0, 0
    try:
        with tempfile.TemporaryDirectory(prefix=f".{CODE}-", dir=folder) as made:
            for name, source in _files(plugins, config_dirs):
                content = source.read_bytes()
                digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
                size, number = size + len(content), number + 1
                if size > MOST:
                    raise RunError(f"{source}: plugins and --config-dir folders hold over {MOST >> 20} MiB of sources")
                copy = Path(made, CODE, name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(content)
                copy.chmod(0o444)
            shutil.rmtree(folder / CODE, ignore_errors=True)
            Path(made, CODE).replace(folder / CODE)
    except OSError as error:
        raise RunError(f"{error.filename or folder}: the code can't be copied: {error.strerror}") from None
    return {"sha256": digest.hexdigest(), "files": number, "bytes": size}


def share(folder: Path, other: Path) -> None:
    """Give another run's folder the same code, as links to the same files."""
    shutil.copytree(folder / CODE, other / CODE, copy_function=os.link)


def environment(folder: Path) -> dict[str, str]:
    """Return the variables with which Python runs the copied code, also from inside a checkout."""
    path = os.pathsep.join(filter(None, [str((folder / CODE).resolve()), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


def _files(plugins: Iterable[str], config_dirs: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Yield (name in the copy, file) in an order that depends on the names alone."""
    yield from _below("mlplatform", places.PACKAGE, None)
    if not (places.PACKAGE / "share").is_dir():  # a checkout, not a wheel
        yield from _below("mlplatform/share/conf", places.conf(), SOURCES)
        yield from _below("mlplatform/share/recipes", places.recipes(), SOURCES)
    for package in sorted({plugin.partition(".")[0] for plugin in plugins} - {"mlplatform"}):
        found = importlib.util.find_spec(package)
        for place in (found.submodule_search_locations or ()) if found else ():
            yield from _below(package, Path(place), SOURCES)
        if found and not found.submodule_search_locations and found.origin:
            yield f"{package}.py", Path(found.origin)
    for number, given in enumerate(config_dirs):
        yield from _below(f"config_dirs/{number}-{Path(given).name}", Path(given), SOURCES)


def _below(name: str, folder: Path, suffixes: set[str] | None) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        hidden = any(part == "__pycache__" or part.startswith(".") for part in inner.parts)
        if path.is_file() and not hidden and (suffixes is None or path.suffix in suffixes):
            yield f"{name}/{inner.as_posix()}", path
