"""Reads a `.wandb` file, to see what W&B was given: LevelDB's log format around protocol buffers.

Blocks of 32 KiB hold records with a header of 7 bytes (checksum, length, type); a record that does not fit is cut into
first, middle and last parts. https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER, MAGIC = 32768, 7, b":W&B"
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class Artifact:
    """One artifact: its type, metadata, aliases, and where each file or reference is."""

    type: str
    metadata: dict[str, Any]
    aliases: list[str]
    files: dict[str, str]


@dataclass
class Written:
    """What a `.wandb` file holds."""

    id: str = ""
    project: str = ""
    group: str = ""
    tags: list[str] = field(default_factory=list)
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    alerts: list[tuple[str, str]] = field(default_factory=list)

    def curve(self, name: str) -> dict[int, float]:
        """Return a metric by step."""
        return {row["_step"]: row[name] for row in self.rows if name in row}


def read(path: Path) -> Written:
    """Return what a `.wandb` file holds."""
    from wandb.proto import wandb_internal_pb2

    found = Written()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.id, found.project, found.group, found.name = run.run_id, run.project, run.run_group, run.display_name
            found.tags = list(run.tags)
            _update(found.config, run.config.update)
        elif kind == "config":
            _update(found.config, record.config.update)
        elif kind == "history":
            items = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            found.rows.append({"_step": record.history.step.num, **items})
        elif kind == "summary":
            _update(found.summary, record.summary.update)
        elif kind == "artifact":
            made = record.artifact
            files = {entry.path: entry.ref or entry.local_path for entry in made.manifest.contents}
            metadata = json.loads(made.metadata or "{}")
            found.artifacts[made.name] = Artifact(made.type, metadata, list(made.aliases), files)
        elif kind == "alert":
            found.alerts.append((record.alert.title, record.alert.text))
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _update(target: dict[str, Any], items: Any) -> None:
    for item in items:
        *parents, last = list(item.nested_key) or [item.key]
        node = target
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = json.loads(item.value_json)


def _records(data: bytes) -> Iterator[bytes]:
    if data[:4] != MAGIC:
        raise ValueError("no .wandb file")
    at, parts = HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # the rest of a block is too small for a header
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts = (b"" if kind in (FULL, FIRST) else parts) + data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            yield parts
