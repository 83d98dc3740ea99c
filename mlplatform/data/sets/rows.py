"""Rows as files: JSON Lines, split by what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlplatform.data.splits import is_validation

Row = Mapping[str, Any]
SHARE = 0.1
"""Of the rows that have no split of their own, this much is held out."""


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON Lines."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_split(folder: Path, rows: Iterable[Row], key: str) -> None:
    """Write train.jsonl and validation.jsonl; the text under `key` decides, so that equal ones stay together."""
    held: dict[bool, list[Row]] = {False: [], True: []}
    for row in rows:
        held[is_validation(str(row[key]), SHARE)].append(row)
    write(folder / "train.jsonl", held[False])
    write(folder / "validation.jsonl", held[True])
