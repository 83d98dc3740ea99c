"""The wheel carries conf, recipes and the default text, and works from an empty folder without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", folder, TOP]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("mlplatform-*.whl"))


def test_the_wheel_holds_what_the_checkout_has(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("conf", "recipes"):
        for file in (TOP / folder).rglob("*.yaml"):
            assert f"mlplatform/share/{file.relative_to(TOP).as_posix()}" in names
    for file in (TOP / "mlplatform").rglob("*.py"):
        assert file.relative_to(TOP).as_posix() in names
    for folder in ("data/texts", "runs/report"):
        for file in (TOP / "mlplatform" / folder).rglob("*"):
            assert file.is_dir() or "__pycache__" in file.parts or file.relative_to(TOP).as_posix() in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "scripts/", "outputs/"))]


def test_the_wheel_trains_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "MLPLATFORM_CACHE": str(tmp_path / "cache")}
    small = ["trainer.max=2 steps", "trainer.validate_every=2 steps", "trainer.checkpoint_every=2 steps"]
    small += ["model.trunk.depth=1", "model.trunk.dim=48", "model.trunk.layer.mlp.width=64", "batch.length=32"]
    command = [sys.executable, "-m", "mlplatform.cli.main", "train", *small]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = list((empty / "outputs").glob("*/*/run.json"))
    assert len(runs) == 1
    assert str(site) in (runs[0].parent / "config.yaml").read_text() or "finished" in runs[0].read_text()
