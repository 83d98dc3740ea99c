"""Every shipped model composes, builds on meta, and is what tests/golden/ says: a refactor shows as a diff there.

`python -m pytest tests/test_golden.py --update-golden` writes the texts again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlplatform import places
from mlplatform.cli.compose import compose_model
from mlplatform.models.describe import Description, Node, describe, plain

GOLDEN = Path(__file__).parent / "golden"
MODELS = sorted(file.stem for file in (places.conf() / "model").glob("*.yaml"))


def blocks(node: Node, depth: int = 0) -> list[str]:
    """Return a block and those below it with every field in effect, stated or not."""
    facts = ", ".join(f"{name}: {plain(value)}" for name, value in node.facts.items())
    copies = f" x{node.copies}" if node.copies > 1 else ""
    lines = [f"{'  ' * depth}{node.name}{copies}: {node.kind}{f' {{{facts}}}' if facts else ''}"]
    return lines + [line for child in node.children for line in blocks(child, depth + 1)]


def parameters(told: Description, prefix: str = "") -> list[str]:
    return [
        f"{p.path} {list(p.shape)}{f' x{p.copies}' if p.copies > 1 else ''}{'' if p.trainable else ' frozen'}"
        for p in told.parameters
        if p.path.startswith(prefix)
    ]


def text(name: str) -> str:
    """Return the golden text of a shipped model: its blocks and parameters, then those of each of its other heads."""
    spec: dict[str, Any] = compose_model(name).check().config
    told = describe(spec)
    lines = [*blocks(told.tree), "", f"init: {plain(spec.get('init'))}", f"{told.total:,} parameters"]
    lines += [*parameters(told), ""]
    for head in spec.get("heads") or {}:
        if head != spec["head"]:
            other = describe({**spec, "head": head})
            lines += [f"head={head}: {other.total:,} parameters"]
            lines += [f"  {line}" for node in other.tree.children if node.name == "head" for line in blocks(node)]
            lines += [f"  {line}" for line in parameters(other, "head")]
    return "\n".join(lines).rstrip() + "\n"


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_as_its_golden_text_says(name: str, request: pytest.FixtureRequest) -> None:
    file, now = GOLDEN / f"{name}.txt", text(name)
    if request.config.getoption("--update-golden"):
        file.write_text(now)
    assert file.is_file(), f"{file} is missing; write it with: pytest tests/test_golden.py --update-golden"
    assert now == file.read_text(), "if this is meant: pytest tests/test_golden.py --update-golden, and read the diff"


def test_no_golden_text_without_its_model(request: pytest.FixtureRequest) -> None:
    stale = [file for file in GOLDEN.glob("*.txt") if file.stem not in MODELS]
    if request.config.getoption("--update-golden"):
        for file in stale:
            file.unlink()
        stale = []
    assert not stale


@pytest.mark.parametrize("name", MODELS)
def test_the_heads_hugging_faces_classes_name_are_there(name: str) -> None:
    spec = compose_model(name).check().config
    heads = set(spec.get("heads") or {})
    named = (spec.get("hf") or {}).get("architectures") or {}
    assert set(named.values()) - {None} <= heads
    assert set((spec.get("hf") or {}).get("heads") or {}) <= heads
