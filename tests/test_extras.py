"""Messages advise extras that there are."""

from __future__ import annotations

import re
import tomllib

from mlplatform.places import PACKAGE


def test_every_extra_a_message_names_is_one() -> None:
    declared = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = [*PACKAGE.rglob("*.py"), PACKAGE.parent / "README.md"]
    named = {extra for path in texts for extra in re.findall(r"mlplatform\[(\w+)\]", path.read_text())}
    assert {"metrics", "audio"} <= named
    assert named <= declared.keys()
