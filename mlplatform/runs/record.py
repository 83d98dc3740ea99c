"""run.json: what a run is, where it stands, and what it takes to make it again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from mlplatform.errors import RunError
from mlplatform.places import PACKAGE
from mlplatform.runs.folder import RECORD, write_whole

SCHEMA = 1
PACKAGES = (
    "mlplatform",
    "torch",
    "lightning",
    "hydra-core",
    "omegaconf",
    "safetensors",
    "tokenizers",
    "numpy",
    "wandb",
)
MOST_EVENTS = 200
Status = Literal["queued", "running", "finished", "failed", "preempted", "cancelled", "pruned"]


def read(folder: Path) -> dict[str, Any]:
    """Return a run's record. Raises RunError when it is missing or broken."""
    path = folder / RECORD
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{folder}: no {RECORD}; this is no run folder") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: can't be read: {error}") from None
    if not isinstance(found, dict) or "status" not in found:
        raise RunError(f"{path}: is no run record")
    return found


def update(folder: Path, **changes: Any) -> dict[str, Any]:
    """Change fields of a run's record and return it."""
    path = folder / RECORD
    record = read(folder) if path.is_file() else {}
    record |= changes
    write_whole(path, json.dumps(record, indent=1, default=str) + "\n")
    return record


def add_event(folder: Path, step: int, kind: str, what: str) -> None:
    """Write down what went wrong at a step; the newest `MOST_EVENTS` stay."""
    events = [*read(folder).get("events", []), {"time": time.time(), "step": step, "kind": kind, "what": what}]
    update(folder, events=events[-MOST_EVENTS:])


def begin(folder: Path, experiment: str, seed: int, argv: list[str], devices: int, data: dict[str, Any]) -> None:
    """Write the first record of a run, and env.txt."""
    commit, dirty = git_state(Path.cwd())
    update(
        folder,
        schema=SCHEMA,
        id=f"{experiment}-{folder.name}",
        experiment=experiment,
        status="running",
        created=time.time(),
        seed=seed,
        argv=argv,
        devices=devices,
        host=socket.gethostname(),
        git={"commit": commit, "dirty": dirty},
        source=source(),
        versions=versions(),
        data=data,
        sessions=[],
        steps=0,
    )
    write_whole(folder / "env.txt", environment_text())


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Return (commit, whether files differ from it) of the checkout around a folder; (None, None) outside one."""
    try:
        run = ["git", "-C", str(folder)]
        commit = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        if commit.returncode:
            return None, None
        changed = subprocess.run([*run, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
        return commit.stdout.strip(), bool(changed.stdout.strip())
    except (OSError, subprocess.TimeoutExpired):
        return None, None


def source() -> str:
    """Return a hash of the library's own files: it tells changes that no commit has, and wheels of one version."""
    found = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        found.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions a run depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment_text() -> str:
    """Return every installed package and the machine, as env.txt holds them. No environment variable is in it."""
    lines = [f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions() if d.metadata["Name"]]
    machine = f"# {platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return "\n".join([machine, *sorted(set(lines), key=str.lower)]) + "\n"
