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
    """Write train.jsonl and validation.jsonl of rows that `split` parts."""
    for name, part in zip(("train", "validation"), split(rows, key), strict=True):
        write(folder / f"{name}.jsonl", part)


def split(rows: Iterable[Row], key: str) -> tuple[list[Row], list[Row]]:
    """Return rows to train on and those held out; the text under `key` decides, so that equal ones stay together."""
    parts: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        parts[is_validation(str(row[key]), SHARE)].append(row)
    return parts
