"""The library never imports transformers, and asking for help, a config or a schema imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mlplatform.places import PACKAGE

HEAVY = ("torch", "lightning", "transformers", "wandb", "tensorboard", "pyarrow", "tokenizers", "safetensors", "numpy")
LIGHT = [
    "import mlplatform",
    "import mlplatform.registry, mlplatform.errors, mlplatform.places, mlplatform.cached",
    "from mlplatform.registry import kinds, json_schema; kinds(); json_schema('run')",
    "import mlplatform as mp; spec = mp.compose('llama', ['trunk.depth=2'])",
    "from mlplatform.cli.compose import compose; compose('train').check()",
    "import mlplatform.runs.folder, mlplatform.runs.record, mlplatform.runs.index",
    *(f"from mlplatform.cli.main import main; assert main({words!r}) == 0" for words in (
        ["--help"], ["train", "--help"], ["config", "show"], ["config", "groups"], ["config", "schema"], ["ls"],
    )),
]  # fmt: skip
MODULES = sorted(
    ".".join(("mlplatform", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for file in PACKAGE.rglob("*.py")
)


def run(program: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_file_of_the_library_names_transformers_in_an_import() -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "transformers" for name in names), f"{file}:{node.lineno}"


def test_models_and_files_work_without_it_being_loaded(tmp_path: Path) -> None:
    """Every room but those of Lightning, whose torchmetrics imports transformers where it is installed."""
    rooms = ("registry", "context", "blocks", "models", "processors", "interop", "generation", "cli", "api")
    names = [name for name in MODULES if name.split(".")[1:2] and name.split(".")[1] in rooms]
    assert len(names) > 40
    program = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    run(program + "assert not {'transformers', 'lightning', 'sympy', 'torch._dynamo'} & set(sys.modules)", tmp_path)


def test_every_cli_module_is_light(tmp_path: Path) -> None:
    names = [name for name in MODULES if name.startswith("mlplatform.cli")]
    check = f"found = sorted(set({HEAVY!r}) & set(sys.modules)); assert not found, (name, found)"
    run(f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n    {check}", tmp_path)


@pytest.mark.parametrize("program", LIGHT)
def test_light_things_import_nothing_heavy(program: str, tmp_path: Path) -> None:
    check = f"\nimport sys\nfound = sorted(set({HEAVY!r}) & set(sys.modules)); assert not found, found"
    run(program + check, tmp_path)
