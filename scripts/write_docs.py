"""Writes docs/blocks.md and docs/models.md from the registry and conf/model: `python scripts/write_docs.py [--check]`.

With `--check` it only says whether they are stale.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator

from mlplatform import places
from mlplatform.cli.compose import compose_model
from mlplatform.cli.library import Library
from mlplatform.models.describe import describe, plain
from mlplatform.places import PACKAGE
from mlplatform.registry import Field, Kind, kinds, lookup

DOCS = PACKAGE.parent / "docs"
WRITTEN = "<!-- Written by scripts/write_docs.py; change the docstrings or the YAML, not this file. -->"
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
    return "\n".join([*lines, ""])


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
