"""The index: fast, and never wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlplatform.runs import kept, metrics, record
from mlplatform.runs.index import rows
from mlplatform.runs.kept import FILE, Kept, key_of


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep files that were just written too, so that a test need not wait."""
    monkeypatch.setattr(kept, "SECONDS_TO_SETTLE", -1.0)


def made(outputs: Path, name: str, loss: float = 1.0, status: str = "finished") -> Path:
    folder = outputs / "default" / name
    folder.mkdir(parents=True)
    record.update(folder, status=status, host="elsewhere", created=1e9, steps=3, metrics={"validation/loss": loss})
    return folder


def losses(outputs: Path) -> list[float]:
    return [row["validation/loss"] for row in rows(outputs)]


@pytest.mark.usefixtures("settled")
def test_what_is_kept_is_not_read_again_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = made(tmp_path, "a", 1.0), made(tmp_path, "b", 2.0)
    read: list[str] = []
    own = record.read
    monkeypatch.setattr(record, "read", lambda folder: read.append(folder.name) or own(folder))
    assert losses(tmp_path) == losses(tmp_path) == [1.0, 2.0]
    assert read == ["a", "b"]
    record.update(two, metrics={"validation/loss": 2.5})
    read.clear()
    assert losses(tmp_path) == [1.0, 2.5]
    assert read == ["b"]
    (one / "run.json").unlink()
    assert losses(tmp_path) == [2.5]


@pytest.mark.usefixtures("settled")
def test_a_run_that_goes_on_is_seen_by_its_metrics(tmp_path: Path) -> None:
    folder = made(tmp_path, "a", status="running")
    assert losses(tmp_path) == [None]
    for step, loss in ((4, 3.0), (8, 2.0)):
        metrics.Metrics(folder).log(step, {"validation/loss": loss})
        assert losses(tmp_path) == [loss]


def test_a_change_within_one_tick_of_the_clock_is_not_missed(tmp_path: Path) -> None:
    """The same size, and the same times: what was just written is not kept, because its times can't tell."""
    folder = made(tmp_path, "a", 1.0)
    for number in range(200):
        text = json.dumps({"status": "finished", "metrics": {"validation/loss": number % 10 / 10}})
        (folder / "run.json").write_text(text)
        assert losses(tmp_path) == [number % 10 / 10]
    assert not (tmp_path / FILE).exists()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("harm", ["garbage", "empty", "cut", "old", "folder", "values"])
def test_a_damaged_index_is_made_again(tmp_path: Path, harm: str) -> None:
    import sqlite3

    made(tmp_path, "a", 1.0)
    assert losses(tmp_path) == [1.0]
    file = tmp_path / FILE
    if harm == "garbage":
        file.write_bytes(os.urandom(5000))
    elif harm == "empty":
        file.write_bytes(b"")
    elif harm == "cut":
        file.write_bytes(file.read_bytes()[:-2000])
    elif harm == "folder":
        file.unlink()
        file.mkdir()
    else:
        with sqlite3.connect(file) as base:
            base.execute("PRAGMA user_version = 0" if harm == "old" else "UPDATE kept SET value = '{'")
        base.close()
    for _ in range(3):
        assert losses(tmp_path) == [1.0]
    if harm != "folder":
        assert Kept(tmp_path)._known("row", {"default/a": key_of([f"{tmp_path}/default/a/run.json", ""])})


@pytest.mark.usefixtures("settled")
def test_several_processes_and_changes_at_once(tmp_path: Path) -> None:
    """Readers make and use the index while runs change; each sees a value that was there, the last one at the end."""
    folders = [made(tmp_path, f"{n:02}", 0.0) for n in range(20)]
    script = f"""
import sys
from pathlib import Path
from mlplatform.runs import kept
from mlplatform.runs.index import rows
kept.SECONDS_TO_SETTLE = -1.0
low = 0.0
for _ in range(30):
    found = [row["validation/loss"] for row in rows(Path({str(tmp_path)!r}))]
    assert len(found) == 20 and min(found) >= low, (found, low)
    low = min(found)
"""
    readers = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    value = 0.0
    while any(reader.poll() is None for reader in readers):
        value += 1
        for folder in folders:
            record.update(folder, metrics={"validation/loss": value})
    assert [(reader.wait(), reader.communicate()[1]) for reader in readers] == [(0, "")] * 3
    assert losses(tmp_path) == [value] * 20


def test_a_place_that_can_not_be_written_is_read_without_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, "a", 1.0)
    monkeypatch.setattr(kept, "SECONDS_TO_SETTLE", -1.0)
    monkeypatch.setattr(kept, "FILE", "no/such/folder.sqlite")
    assert losses(tmp_path) == losses(tmp_path) == [1.0]


def test_two_thousand_runs_are_listed_and_compared_quickly_and_without_torch(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    for number in range(2000):
        folder = outputs / f"sweep_{number % 4}" / f"2026-11-23_{number:06d}"
        folder.mkdir(parents=True)
        known = {"status": "failed" if number % 500 == 0 else "finished", "created": 1e9, "steps": 9, "versions": {}}
        known |= {"metrics": {"validation/loss": 1 + number / 1000}, "argv": ["x" * 50] * 20}
        (folder / "run.json").write_text(json.dumps(known))
        (folder / "config.yaml").write_text(f"seed: {number}\n")
    time.sleep(2.1)
    script = """
import sys, time
from mlplatform.cli.main import main
began = time.process_time()
assert main(sys.argv[1:]) == 0
heavy = [name for name in ("torch", "lightning", "hydra", "transformers") if name in sys.modules]
print(time.process_time() - began, heavy, file=sys.stderr)
"""

    def run(*words: str) -> tuple[str, float]:
        command = [sys.executable, "-c", script, *words, "--outputs", str(outputs)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, heavy = done.stderr.splitlines()[-1].split(maxsplit=1)
        assert heavy == "[]"
        return done.stdout, float(seconds)

    first, _ = run("ls")
    assert len(first.splitlines()) == 2001
    assert (outputs / FILE).is_file()
    for words in (["ls"], ["compare", "2026-11-23_000001", "2026-11-23_000002"]):
        assert run(*words)[1] < 1.5
    assert run("ls", "--status", "failed")[0].count("failed") == 4
    best = run("ls", "sweep_3/", "--sort", "loss", "--limit", "2")[0].splitlines()
    assert [line.split()[0] for line in best[1:3]] == ["sweep_3/2026-11-23_000003", "sweep_3/2026-11-23_000007"]
    assert best[3] == "2 of 500 runs"
    worst = run("ls", "--sort", "-loss", "--limit", "1")[0].splitlines()
    assert worst[1].split()[0] == "sweep_3/2026-11-23_001999"
    page, seconds = run("report", "sweep_1/", "--into", str(tmp_path / "page.html"))
    assert "wrote" in page
    assert seconds < 3
