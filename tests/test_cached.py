from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mlplatform.cached import cached_folder, write_whole
from mlplatform.errors import DataError
from mlplatform.places import cache


def _fine(folder: Path) -> str | None:
    return None if (folder / "a").is_file() else "no a"


def _write(folder: Path) -> None:
    (folder / "a").write_text("contents")


def _refuse(folder: Path) -> None:
    raise AssertionError("built again")


def test_a_folder_is_built_once() -> None:
    folder = cached_folder("group", "key", _write, _fine, "thing")
    assert folder == cache() / "group" / "key"
    assert cached_folder("group", "key", _refuse, _fine, "thing") == folder


def test_a_damaged_folder_is_built_again() -> None:
    folder = cached_folder("group", "key", _write, _fine, "thing")
    (folder / "a").unlink()
    (folder / "stale").write_text("old")
    cached_folder("group", "key", _write, _fine, "thing")
    assert [p.name for p in folder.iterdir()] == ["a"]


def test_a_build_that_fails_leaves_nothing() -> None:
    def fail(folder: Path) -> None:
        _write(folder)
        raise DataError("bad input")

    with pytest.raises(DataError, match=r"^bad input$"):
        cached_folder("group", "key", fail, _fine, "thing")
    assert [p.name for p in (cache() / "group").iterdir()] == [".key.lock"]


def test_what_a_killed_builder_left_is_swept() -> None:
    left = cache() / "group" / ".tmp-key-1234"
    left.mkdir(parents=True)
    (left / "half").write_text("x")
    cached_folder("group", "key", _write, _fine, "thing")
    assert not left.exists()


def test_a_full_disk_is_one_line_and_leaves_nothing() -> None:
    def write_much(folder: Path) -> None:
        with (folder / "a").open("wb") as file:
            file.write(bytes(1 << 20))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))  # a write that the system really refuses
    try:
        with pytest.raises(DataError, match=r"group: can't keep the thing: .*set MLPLATFORM_CACHE"):
            cached_folder("group", "key", write_much, _fine, "thing")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in (cache() / "group").iterdir()] == [".key.lock"]


def test_a_cache_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLPLATFORM_CACHE", "/dev/null/cache")
    with pytest.raises(DataError, match=r"/dev/null/cache/group: can't keep the thing: .*set MLPLATFORM_CACHE"):
        cached_folder("group", "key", _write, _fine, "thing")


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"one")
    write_whole(tmp_path / "a", b"two")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"two")]


BUILDER = """
import os, sys, time
from pathlib import Path
from mlplatform.cached import cached_folder

def build(folder):
    with open(sys.argv[1], "a") as file:
        file.write("built\\n")
    (folder / "half").write_text("x")
    time.sleep(0.5)
    if "die" in sys.argv:
        os.kill(os.getpid(), 9)
    (folder / "a").write_text("whole")

folder = cached_folder("group", "key", build, lambda f: None if (f / "a").is_file() else "no a", "thing")
print((folder / "a").read_text())
"""


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", BUILDER, *arguments], stdout=subprocess.PIPE, text=True)


def test_processes_that_start_at_once_share_one_build(tmp_path: Path) -> None:
    log = tmp_path / "log"
    both = [_start(str(log)) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in both] == ["whole\n"] * 3
    assert log.read_text() == "built\n"


def test_a_builder_killed_in_the_middle_does_not_block_the_next(tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = _start(str(log), "die")
    first.communicate(timeout=60)
    assert first.returncode == -9
    assert not (cache() / "group" / "key").exists()
    assert _start(str(log)).communicate(timeout=60)[0] == "whole\n"
    assert log.read_text() == "built\n" * 2
