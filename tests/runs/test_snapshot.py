"""The frozen code: what is copied, that it is what runs, and that several runs share one copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlplatform import places
from mlplatform.errors import RunError
from mlplatform.runs import snapshot

ASK = "import mlplatform, mlplatform.places as p; print(mlplatform.__file__, p.conf(), p.recipes())"


def plugin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a package that can be imported, with sources, data and weights in it."""
    package = folder / "site" / "my_blocks"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "norms.py").write_text("WIDTH = 1\n")
    (package / "table.json").write_text("{}")
    (package / "weights.safetensors").write_bytes(b"0" * 100)
    monkeypatch.syspath_prepend(str(folder / "site"))
    return package


def test_the_copy_is_what_python_imports_even_from_inside_the_checkout(tmp_path: Path) -> None:
    told = snapshot.take(tmp_path)
    code = tmp_path / "code"
    environment = {**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
    said = subprocess.run(
        [sys.executable, "-c", ASK], cwd=places.PACKAGE.parent, env=environment, capture_output=True, text=True
    )
    share = code / "mlplatform" / "share"
    assert said.stdout.split() == [
        str(code / "mlplatform" / "__init__.py"),
        str(share / "conf"),
        str(share / "recipes"),
    ]
    for folder, copy in ((places.conf(), share / "conf"), (places.recipes(), share / "recipes")):
        names = [path.relative_to(folder) for path in folder.rglob("*.yaml")]
        assert names
        assert all((copy / name).read_bytes() == (folder / name).read_bytes() for name in names)
    files = [path for path in code.rglob("*") if path.is_file()]
    assert (told["files"], told["bytes"]) == (len(files), sum(path.stat().st_size for path in files))
    assert told["bytes"] < 8 << 20
    assert not [path for path in code.rglob("*") if "__pycache__" in path.parts]


def test_plugins_and_folders_of_options_go_along_without_their_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin(tmp_path, monkeypatch)
    single = tmp_path / "site" / "one_file.py"
    single.write_text("X = 1\n")
    options = tmp_path / "my_conf"
    (options / "model").mkdir(parents=True)
    (options / "model" / "mine.yaml").write_text("defaults: [llama]\n")
    (options / "notes.bin").write_bytes(b"\0")
    snapshot.take(tmp_path, ["my_blocks.inner", "one_file"], [str(options)])
    code = tmp_path / "code"
    found = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}
    assert {name for name in found if not name.startswith("mlplatform/")} == {
        "my_blocks/__init__.py",
        "my_blocks/inner/norms.py",
        "my_blocks/table.json",
        "one_file.py",
        "config_dirs/0-my_conf/model/mine.yaml",
    }


def test_the_hash_changes_with_a_byte_and_with_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = plugin(tmp_path, monkeypatch)
    first = snapshot.take(tmp_path, ["my_blocks"])
    (package / "weights.safetensors").write_bytes(b"1")
    os.utime(package / "__init__.py", (1, 1))
    assert snapshot.take(tmp_path, ["my_blocks"]) == first
    (package / "inner" / "norms.py").write_text("WIDTH = 2\n")
    second = snapshot.take(tmp_path, ["my_blocks"])
    assert second["sha256"] != first["sha256"]
    assert (tmp_path / "code" / "my_blocks" / "inner" / "norms.py").read_text() == "WIDTH = 2\n"


def test_runs_of_one_grid_share_the_files_and_deleting_one_leaves_the_other(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    snapshot.take(one)
    snapshot.share(one, two)
    names = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    assert all((one / name).stat().st_ino == (two / name).stat().st_ino for name in names)
    shutil.rmtree(one)
    assert (two / "code" / "mlplatform" / "worker.py").read_bytes() == (places.PACKAGE / "worker.py").read_bytes()


def test_what_is_too_large_to_be_code_is_refused_and_the_old_copy_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = plugin(tmp_path, monkeypatch)
    snapshot.take(tmp_path, ["my_blocks"])
    (package / "table.json").write_bytes(b" " * (snapshot.MOST + 1))
    with pytest.raises(RunError, match=r"table\.json: plugins and --config-dir folders hold over 32 MiB of sources"):
        snapshot.take(tmp_path, ["my_blocks"])
    assert (tmp_path / "code" / "my_blocks" / "table.json").read_text() == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code", "site"]
