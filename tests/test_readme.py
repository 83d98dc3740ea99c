"""The README's commands compose, its YAML is the file's, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from mlplatform.cli.arguments import parse
from mlplatform.cli.axes import split
from mlplatform.cli.compose import compose
from mlplatform.cli.library import Library
from mlplatform.cli.main import find_verb

TOP = Path(__file__).parent.parent
TEXT = (TOP / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL))
COMMANDS = [line.removeprefix("$ mlplatform ") for line in BLOCKS.splitlines() if line.startswith("$ mlplatform ")]


@pytest.mark.parametrize("command", [c for c in COMMANDS if "model=lama" not in c])
def test_commands_are_sound(command: str) -> None:
    verb, words = find_verb(shlex.split(command, comments=True))
    arguments = parse(verb, words)
    if "OVERRIDES" in verb.usage:
        fixed, space = split(arguments.overrides(), Library())
        compose("train", [*fixed, *(f"{key}={axis.ends()[0]}" for key, axis in space.items())]).check()


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) > 8


def test_the_yaml_shown_is_the_yaml_shipped() -> None:
    shown = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert shown is not None
    assert yaml.safe_load(shown[1]) == yaml.safe_load((TOP / "conf" / "model" / "llama.yaml").read_text())


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT))))
def test_links_lead_somewhere(target: str) -> None:
    assert (TOP / target).exists()


def test_nothing_was_left_to_fill_in() -> None:
    assert not re.findall(r"[A-Z]+_(?:BPB|MINUTES|TABLE|YAML|RESULT)", TEXT)


def test_recipes_say_how_they_were_run() -> None:
    for path in (TOP / "recipes").glob("*.yaml"):
        head = path.read_text(encoding="utf-8")
        for word in ("command", "machine", "result", "baseline"):
            assert re.search(rf"^#\s+{word}\s+\S", head, re.MULTILINE), f"{path.name}: no {word}"
        compose("train", [f"recipes={path.stem}"]).check()


def test_every_recipe_is_told_of() -> None:
    named = set(re.findall(r"`(\w+)`", (TOP / "docs" / "recipes.md").read_text(encoding="utf-8")))
    assert {path.stem for path in (TOP / "recipes").glob("*.yaml")} <= named
