"""Run folders: made atomically, found by name, held by one process, written whole."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlplatform.errors import RunError
from mlplatform.runs.folder import create, find, held, is_held, runs_in, spared, write_whole

NOON = 1_795_435_200.0


def made(outputs: Path, name: str, experiment: str = "default", created: float = NOON) -> Path:
    """Make a run folder with a record, as old as told."""
    folder = outputs / experiment / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "finished"}))
    os.utime(folder / "run.json", (created, created))
    return folder


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    names = [create(tmp_path, "default", NOON).name for _ in range(3)]
    stamp = time.strftime("%Y-%m-%d_%H%M%S", time.localtime(NOON))
    assert names == [stamp, f"{stamp}-2", f"{stamp}-3"]


def test_many_processes_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    script = f"""
import sys, time
from pathlib import Path
from mlplatform.runs.folder import create
sys.stdin.readline()
for _ in range(25):
    print(create(Path({str(tmp_path)!r}), "default", {NOON}))
"""
    pipe = subprocess.PIPE
    processes = [subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True) for _ in range(8)]
    for process in processes:  # they wait for a line, so that all begin together
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    printed = [process.communicate(timeout=60)[0].split() for process in processes]
    folders = [line for lines in printed for line in lines]
    assert len(folders) == len(set(folders)) == 200
    assert all(Path(folder).is_dir() for folder in folders)


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/default: can't make a run folder: Not a directory; set outputs="):
        create(tmp_path / "file", "default")


def test_runs_are_found_by_path_name_and_last(tmp_path: Path) -> None:
    old = made(tmp_path, "2026-11-23_120000", created=NOON)
    new = made(tmp_path, "2026-11-23_130000", "other", created=NOON + 1)
    assert runs_in(tmp_path) == [old, new]
    assert find(str(old), tmp_path) == old
    assert find("default/2026-11-23_120000", tmp_path) == old
    assert find("2026-11-23_130000", tmp_path) == new
    assert find("last", tmp_path) == find(None, tmp_path) == new
    assert find(f"{old.parent.name}/last", tmp_path).parent == old.parent
    with pytest.raises(RunError, match="no run 'nothing/last' under"):
        find("nothing/last", tmp_path)


def test_a_run_that_is_not_there_gets_its_nearest(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no runs yet; `mlplatform train` makes one"):
        find("last", tmp_path)
    made(tmp_path, "2026-11-23_120000")
    with pytest.raises(RunError, match=r"no run 'default/2026-11-23_120001'.*did you mean 'default/2026-11-23_120000'"):
        find("default/2026-11-23_120001", tmp_path)


def test_a_name_two_runs_have_is_refused_with_both(tmp_path: Path) -> None:
    for experiment in ("one", "two"):
        made(tmp_path, "2026-11-23_120000", experiment)
    with pytest.raises(RunError, match="several have this name: one/2026-11-23_120000, two/2026-11-23_120000"):
        find("2026-11-23_120000", tmp_path)


def test_a_folder_is_held_by_one_process_until_it_dies(tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from mlplatform.runs.folder import held
with held(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_held(tmp_path)
        with pytest.raises(RunError, match="this run is still running"), held(tmp_path):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    assert not is_held(tmp_path)
    with held(tmp_path):
        pass


def test_a_folder_nobody_ever_held_is_free(tmp_path: Path) -> None:
    assert not is_held(tmp_path)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_whole(path, "one")
    write_whole(path, "two", mode=0o600)
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_a_file_that_can_not_be_written_stays_as_it_was(tmp_path: Path, full_disk: Path) -> None:
    path = full_disk / "config.yaml"
    write_whole(path, "one")
    with pytest.raises(RunError, match=r"config.yaml: can't be written: .*; what was there is as it was"):
        write_whole(path, "x" * (64 << 20))
    assert path.read_text() == "one"
    assert [p.name for p in full_disk.iterdir()] == ["config.yaml"]


def fill(disk: Path) -> None:
    """Write until there is no room."""
    with (disk / "all").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"0" * 4096)


def test_room_is_kept_for_the_last_words(full_disk: Path) -> None:
    with spared(full_disk):
        fill(full_disk)
        with pytest.raises(RunError, match="No space left"):
            write_whole(full_disk / "run.json", "x" * 10_000)
    write_whole(full_disk / "run.json", "x" * 10_000)
    assert {p.name for p in full_disk.iterdir()} == {"all", "run.json"}
