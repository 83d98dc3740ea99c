"""The floors: a room imports only lower ones, neighbours don't import each other, and third parties stay in theirs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlplatform.places import PACKAGE

FLOORS: list[list[set[str]]] = [
    # from the ground up; each floor is a list of rooms, a room the packages and modules that belong together
    [{"errors", "places"}],
    [{"registry", "context", "cached"}],
    [{"blocks"}],
    [{"models"}, {"processors"}],
    [{"interop"}, {"data"}, {"generation"}],
    [{"tasks"}, {"training"}],
    [{"runs"}],
    [{"cli"}],
    [{"api", "worker", "sweep_worker", "__init__"}],
]
PLACES = {
    name: (floor, room) for floor, rooms in enumerate(FLOORS) for room, names in enumerate(rooms) for name in names
}
THIRD_PARTIES = {
    # package -> the only rooms that may name it
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "lightning": {"data", "tasks", "training", "runs", "cli"},
    "tokenizers": {"processors", "cli"},
    "timm": {"blocks"},
    "scipy": {"blocks", "data"},
    "soundfile": {"data"},
    "sklearn": {"data"},
    "datasets": {"data"},
    "lm_eval": {"runs"},
    "torchmetrics": {"tasks"},
    "seqeval": {"tasks"},
    "huggingface_hub": {"interop", "cli"},
    "pyarrow": {"data", "cli"},
    "deepspeed": {"training"},
    "torchao": {"training"},
    "wandb": {"runs", "training", "cli"},
    "tensorboard": {"runs", "training", "cli"},
    "optuna": {"runs"},
    "mlflow": {"runs"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything a file imports, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative imports hide the floor they reach"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_a_room_imports_only_lower_floors(file: Path) -> None:
    own = room_of(file)
    assert own in PLACES, f"{own} has no floor; give it one above"
    floor, room = PLACES[own]
    for line, name in imports(file):
        parts = name.split(".")
        if parts[0] == "mlplatform" and len(parts) > 1:
            target = parts[1] if parts[1] in PLACES else "__init__"
            there, other = PLACES[target]
            allowed = there < floor or (there, other) == (floor, room)
            assert allowed, f"{file}:{line}: {own} (floor {floor}) imports {name} (floor {there})"
        elif parts[0] in THIRD_PARTIES:
            assert own in THIRD_PARTIES[parts[0]], f"{file}:{line}: {own} names {parts[0]}"


def test_the_floors_are_the_folders_there_are() -> None:
    found = {room_of(file) for file in FILES}
    assert found == set(PLACES), "a floor without a room, or a room without a floor"


def test_a_rooms_files_are_small() -> None:
    """A file can be read at one sitting."""
    for file in FILES:
        lines = file.read_text().count("\n")
        assert lines < 450, f"{file} has {lines} lines"


def test_functions_are_small() -> None:
    """60 lines of code at most, what the signature and the docstring take left out."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                assert lines <= 60, f"{file}:{node.lineno}: {node.name} has {lines} lines"


def test_scripts_are_thin() -> None:
    """What stands in scripts/ is called by people: it may import everything, and nothing imports it."""
    for file in FILES:
        assert not any(name.split(".")[0] == "scripts" for _, name in imports(file))
