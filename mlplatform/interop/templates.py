"""Name templates: `trunk.layers.*.attention.{q,k,v}` stands for three names per layer number."""

from __future__ import annotations

import re
from collections.abc import Iterator

BRACES = re.compile(r"\{([^{}]*)\}")


def spread(template: str) -> list[str]:
    """Return the names a template's braces stand for, in order: `a.{b,c}` -> `a.b`, `a.c`."""
    match = BRACES.search(template)
    if match is None:
        return [template]
    before, after = template[: match.start()], template[match.end() :]
    return [name for word in match.group(1).split(",") for name in spread(f"{before}{word.strip()}{after}")]


def pattern(template: str) -> re.Pattern[str]:
    """Return the regular expression of a brace-less template: `*` is a number, a final `**` any name."""
    parts = [re.escape(part) for part in re.split(r"(\*\*|\*)", template)]
    source = "".join({r"\*\*": r"(.+)", r"\*": r"(\d+)"}.get(part, part) for part in parts)
    return re.compile(source + r"\Z")


def fill(template: str, values: tuple[str, ...]) -> str:
    """Put captured values into a template's stars, in order; stars left over stay."""
    pieces = re.split(r"(\*\*|\*)", template)
    given: Iterator[str] = iter(values)
    return "".join(next(given, piece) if piece in ("*", "**") else piece for piece in pieces)
