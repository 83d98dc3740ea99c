"""docs/blocks.md and docs/models.md say what the code says; they name every kind, field and model."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from mlplatform import places
from mlplatform.places import PACKAGE
from mlplatform.registry import kinds

SCRIPT = PACKAGE.parent / "scripts" / "write_docs.py"
DOCS = PACKAGE.parent / "docs"


def test_the_documents_are_not_stale() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_kind_and_field_is_there_with_its_type() -> None:
    text = (DOCS / "blocks.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for kind in kinds().values():
        entries = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^### |\Z)", sections[kind.group], re.MULTILINE | re.DOTALL))
        rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \| ", entries[kind.name], re.MULTILINE))
        assert list(rows) == list(kind.fields)
        assert not [cell for cell in rows.values() if "Annotated" in cell or "Positive" in cell]
        assert (PACKAGE.parent / kind.file.relative_to(PACKAGE.parent)).is_file()


def test_every_link_within_the_page_leads_somewhere() -> None:
    text = (DOCS / "blocks.md").read_text()
    headings = {line.lstrip("#").strip().lower() for line in text.splitlines() if line.startswith("## ")}
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= headings


@pytest.mark.parametrize("name", sorted(f.stem for f in (places.conf() / "model").glob("*.yaml")))
def test_every_model_is_there(name: str) -> None:
    assert f"| `{name}` |" in (DOCS / "models.md").read_text()


def test_a_stale_document_is_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import write_docs

    monkeypatch.setattr(write_docs, "blocks", lambda: "something else")
    assert write_docs.main(["--check"]) == 1
    assert "docs/blocks.md is stale; write it again with" in capsys.readouterr().out
