"""The tables of docs/strategies.md that tests write, and read again to see whether they are stale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "strategies.md"


def table(heading: str) -> dict[str, list[str]]:
    """Return the rows of the table under a heading, by their first cell."""
    lines = DOCS.read_text().splitlines()
    rows: dict[str, list[str]] = {}
    for line in lines[lines.index(heading) + 1 :]:
        if line.startswith("#"):
            break
        if line.startswith("| `"):
            name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
            rows[name.strip("`")] = cells
    return rows


def put(heading: str, rows: Mapping[str, Sequence[str]]) -> None:
    """Put rows into the table under a heading; those that are not given stay."""
    lines = DOCS.read_text().splitlines()
    begin = lines.index(heading)
    for name, cells in rows.items():
        place = next(i for i, line in enumerate(lines) if i > begin and line.startswith(f"| `{name}` |"))
        lines[place] = f"| `{name}` | {' | '.join(cells)} |"
    DOCS.write_text("\n".join(lines) + "\n")
