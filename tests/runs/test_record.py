"""run.json and env.txt: what a run is and what it takes to make it again."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from mlplatform.errors import RunError
from mlplatform.runs import record

DATA = {"fingerprint": "abc", "skipped_rows": {"not JSON": 2}}


def begun(folder: Path) -> dict[str, object]:
    """Write a first record and return it as it is on disk."""
    record.begin(folder, "default", 7, ["mlplatform", "train"], 2, DATA)
    return json.loads((folder / "run.json").read_text())


def test_the_first_record_says_what_the_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    known = begun(tmp_path)
    expected = {
        "schema": 1,
        "status": "running",
        "seed": 7,
        "argv": ["mlplatform", "train"],
        "devices": 2,
        "data": DATA,
    }
    assert {name: known[name] for name in expected} == expected
    assert known["id"] == f"default-{tmp_path.name}"
    assert known["host"] == platform.node()
    assert known["git"] == {"commit": None, "dirty": None}
    assert known["versions"]["torch"] == metadata.version("torch")  # type: ignore[index]
    lines = (tmp_path / "env.txt").read_text().splitlines()
    assert f"torch=={metadata.version('torch')}" in lines
    assert lines[0].startswith("# Linux")


def test_no_environment_variable_reaches_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "planted-and-not-to-be-found")
    begun(tmp_path)
    assert not any("planted" in path.read_text() for path in tmp_path.iterdir())


def test_the_commit_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("one")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    commit, dirty = record.git_state(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "file").write_text("two")
    assert record.git_state(tmp_path) == (commit, True)


def test_fields_change_one_by_one(tmp_path: Path) -> None:
    before = begun(tmp_path)
    record.update(tmp_path, status="finished", steps=12)
    assert record.read(tmp_path) == {**before, "status": "finished", "steps": 12}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"state": 1}'])
def test_a_broken_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=r"run\.json"):
        record.read(tmp_path)


def test_a_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run\.json; this is no run folder"):
        record.read(tmp_path)


def test_a_full_disk_leaves_the_record_as_it_was(full_disk: Path) -> None:
    record.update(full_disk, status="running")
    with pytest.raises(RunError, match="No space left on device; what was there is as it was"):
        record.update(full_disk, argv=["x" * (4 << 20)])
    assert record.read(full_disk) == {"status": "running"}
