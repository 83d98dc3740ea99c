"""Writes docs/blocks.md and docs/models.md: `python scripts/write_docs.py [--check]`.

They come from the registry, conf/model and what the tests measured beside transformers.

With `--check` it only says whether they are stale.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlplatform import places
from mlplatform.cli.compose import compose_model
from mlplatform.cli.library import Library
from mlplatform.models.describe import describe, plain
from mlplatform.places import PACKAGE
from mlplatform.registry import Field, Kind, kinds, lookup

DOCS = PACKAGE.parent / "docs"
TESTS = PACKAGE.parent / "tests"
WRITTEN = "<!-- Written by scripts/write_docs.py; change the docstrings or the YAML, not this file. -->"
BESIDE = """## Beside transformers

What `python -m pytest tests/parity/test_parity.py --measured` measured: tiny random models of transformers, every
parameter moved from its initial value, saved, loaded here, and compared in fp32, with padding on both sides. Every
variant is also saved back to the same bytes, loaded by transformers again, and has a control that must fail.

The largest difference of outputs is absolute; that of gradients is relative to each tensor's largest entry. The suite
allows 1e-5 (2e-5 behind deep convolutions) and 1e-4. Empty: transformers' head has no loss, or another one.
"""
WORDS = {
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "str": "text",
    "dict": "mapping",
    "None": "null",
    "Positive": "whole number >= 1",
    "Natural": "whole number >= 0",
    "PositiveFloat": "number > 0",
    "NonNegativeFloat": "number >= 0",
    "Fraction": "number >= 0 and < 1",
    "Text": "text, not empty",
    "Interval": "interval, such as `500 steps`, `2B tokens`, `30 min`, `2%`",
    "Activation": "an [activation](#activations)",
}


def blocks() -> str:
    """Return docs/blocks.md: every registered kind with its fields, grouped as the registry groups them."""
    groups: dict[str, list[Kind]] = {}
    for kind in kinds().values():
        groups.setdefault(kind.group, []).append(kind)
    lines = [WRITTEN, "# Blocks: every kind a YAML can name", ""]
    lines += [
        "`kind:` names one of these; all other keys of a node are its fields. What is *handed down* comes from the"
    ]
    lines += ["parent and may not be stated. An editor gets the same from `mlplatform config schema`.", ""]
    lines += [" | ".join(f"[{group}](#{group})" for group in groups), ""]
    for group, members in groups.items():
        lines += [f"## {group}", ""]
        for kind in members:
            lines += _kind(kind)
    names = ", ".join(f"`{name}`" for name in _literals("Activation"))
    return "\n".join([*lines, "## Activations", "", f"{names}: as Hugging Face's `hidden_act` names them.", ""])


def models() -> str:
    """Return docs/models.md: every shipped model with its size, heads and counterpart in Hugging Face."""
    lines = [WRITTEN, "# Models: every file of conf/model", ""]
    lines += ["`mlplatform describe model=NAME` shows one in full: its tree, FLOPs and memory.", ""]
    lines += ["| name | what it is | parameters | heads, the default first | `model_type` |", "|---|---|--:|---|---|"]
    for name in Library().options("model"):
        spec = compose_model(name).check().config
        about = (places.conf() / "model" / f"{name}.yaml").read_text().splitlines()[0].removeprefix("#").strip()
        heads = sorted(spec.get("heads") or {}, key=lambda head: head != spec.get("head"))
        theirs = (spec.get("hf") or {}).get("model_type") or ""
        shown = ", ".join(f"`{head}`" for head in heads)
        lines.append(f"| `{name}` | {_cell(about)} | {describe(spec).total:,} | {shown} | {theirs} |")
    return "\n".join([*lines, "", *_parity(), ""])


def _parity() -> list[str]:
    """Return the tables of what the test run measured beside transformers (tests/parity/measured.json)."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads((TESTS / "parity" / "measured.json").read_text(encoding="utf-8")):
        found.setdefault(row["family"], []).append(row)
    shipped = places.conf() / "model"
    own = {family: rows for family, rows in found.items() if (shipped / f"{family}.yaml").is_file()}
    outside = {family: rows for family, rows in found.items() if family not in own}
    lines = [*BESIDE.splitlines(), ""]
    lines += _rows(own, shipped)
    lines += ["", "### By YAML alone", ""]
    lines += ["The families of `tests/families/model`, a folder outside the package, without any Python of theirs:", ""]
    return lines + _rows(outside, TESTS / "families" / "model")


def _rows(families: dict[str, list[dict[str, Any]]], folder: Path) -> list[str]:
    lines = ["| model | variants | outputs | gradients | parameters | YAML lines |", "|---|---|--:|--:|--:|--:|"]
    for family, rows in sorted(families.items()):
        file = folder / f"{family}.yaml"
        spec = compose_model(family, (), [folder.parent]).check().config
        gradients = [row["gradients"] for row in rows if row["gradients"] is not None]
        cells = [
            f"[`{family}`](../{file.relative_to(PACKAGE.parent).as_posix()})",
            ", ".join(row["variant"] for row in rows),
            f"{max(row['outputs'] for row in rows):.0e}",
            f"{max(gradients):.0e}" if gradients else "",
            f"{describe(spec).total:,}",
            str(len(file.read_text(encoding="utf-8").splitlines())),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _kind(kind: Kind) -> list[str]:
    summary, meanings = _read(kind.doc)
    if alike := re.search(r"as in `(\w+)`", kind.doc):
        meanings = _read(lookup(alike[1], kind.group).doc)[1] | meanings
    source = kind.file.relative_to(PACKAGE.parent).as_posix()
    lines = [f"### `{kind.name}`", "", summary, "", f"Source: [{source}](../{source})."]
    if kind.handed:
        lines[-1] += f" Handed down: {', '.join(f'`{name}`' for name in kind.handed)}."
    if not kind.fields:
        return [*lines, "No fields.", ""]
    lines += ["", "| field | type | default | meaning |", "|---|---|---|---|"]
    for field in kind.fields.values():
        lines.append(f"| `{field.name}` | {_type(field)} | {_default(field)} | {_cell(meanings.get(field.name, ''))} |")
    return [*lines, ""]


def _read(doc: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its prose and the meaning of each argument (several may share a line)."""
    prose, _, rest = doc.partition("\nArgs:\n")
    rest = rest.split("\n\n")[0]
    meanings: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\S)", "\n" + rest)[1:]:
        for part in re.split(r"(?<=\.) (?=[a-z_]+(?:, [a-z_]+)*: )", " ".join(entry.split())):
            names, _, meaning = part.partition(": ")
            meanings |= dict.fromkeys(names.split(", "), meaning)
    return prose.strip(), meanings


def _type(field: Field) -> str:
    return _cell(_words(ast.parse(field.text, mode="eval").body))


def _words(node: ast.expr) -> str:
    if isinstance(node, ast.BinOp):
        return f"{_words(node.left)}, or {_words(node.right)}"
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if node.value.id == "Literal":
            return ", ".join(f"`{ast.literal_eval(option)}`" for option in inner)
        if node.value.id == "Annotated":
            return _nested(ast.unparse(inner[0]), str(ast.literal_eval(inner[1])))
        if node.value.id == "tuple":
            return f"list of {len(inner)}: {_words(inner[0])}"
        return f"{'list' if node.value.id == 'list' else 'mapping'} of: {_words(inner[-1])}"
    text = ast.unparse(node)
    return WORDS.get(text, text)


def _nested(what: str, name: str) -> str:
    return {
        "Spec": f"a [{name}](#{name})",
        "Exceptions": f"list of changes to `{name}`, each with `layers`",
        "Named": f"mapping of names to what may stand under `{name}`",
        "OneOf": f"a name among `{name}`",
    }[what]


def _default(field: Field) -> str:
    if field.required:
        return "**needed**"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{plain(value)}`" if value != "" else "empty"


def _literals(name: str) -> Iterator[str]:
    from mlplatform.registry import vocabulary

    yield from getattr(vocabulary, name).__args__


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(argv: list[str]) -> int:
    """Write the files, or with --check compare them. Returns 1 when one is stale."""
    stale = []
    for path, text in ((DOCS / "blocks.md", blocks()), (DOCS / "models.md", models())):
        if "--check" not in argv:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            stale.append(f"docs/{path.name} is stale; write it again with: python scripts/write_docs.py")
    print("\n".join(stale) if stale else "docs/blocks.md and docs/models.md say what the code says")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
