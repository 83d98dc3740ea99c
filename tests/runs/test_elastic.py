"""A rank that dies ends the others, is named, and is started again where that is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_worker import last
from tiny_runs import curves, prepared

from mlplatform.errors import RunError
from mlplatform.runs import launch, record
from mlplatform.runs.elastic import culprit, words
from mlplatform.runs.folder import is_held
from mlplatform.training.checkpoints import newest_whole

TWO = ["strategy=ddp", "trainer.devices=2"]


def started(folder: Path, monkeypatch: pytest.MonkeyPatch, *dying: str) -> record.Status:
    """Start a run of which one rank dies."""
    real = launch.run_ranks
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(launch.__file__).parents[2]}")

    def run_ranks(path: Path, devices: int, module: list[str]) -> int:
        return real(path, devices, ["dying_rank", str(path), *dying])

    monkeypatch.setattr(launch, "run_ranks", run_ranks)
    return launch.start(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two ranks that nobody disturbed."""
    folder = prepared(tmp_path_factory.mktemp("whole"), *TWO)
    assert launch.start(folder) == "finished"
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("killed", r"rank 1 was killed by SIGKILL$"),
        ("raise", r"rank 1 ended with exit code 1: ValueError: the disk of rank 1 hums$"),
    ],
)
def test_a_rank_that_dies_ends_all_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, told: str
) -> None:
    folder = prepared(tmp_path, *TWO, "trainer.max='4000 steps'")
    with pytest.raises(RunError, match=told) as caught:
        started(folder, monkeypatch, "1", "5", way)
    ended = time.time()
    assert "\n" not in str(caught.value)
    known = record.read(folder)
    assert known["status"] == "failed"
    assert f"{folder}: {known['error']}" == str(caught.value)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 5  # the rank dies before the sixth
    assert ended - rows[-1]["time"] < 60  # at most 31 s after the death, and this process has to see it
    assert newest_whole(folder / "checkpoints")[0] == folder / "checkpoints/step=00000004"
    assert not is_held(folder)


@pytest.mark.distributed
def test_a_death_is_no_preemption_whatever_rank_0_makes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{Path(launch.__file__).parents[2]}")
    folder = prepared(tmp_path, *TWO)
    assert launch.run_ranks(folder, 2, ["stopped_rank", str(folder)]) == 1
    known = record.read(folder)
    assert (known["status"], known["error"]) == ("failed", "rank 1 was killed by SIGKILL")
    assert known["again"]


@pytest.mark.distributed
def test_a_rank_that_stalls_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared(tmp_path, *TWO, "trainer.max='4000 steps'", "trainer.timeout=5")
    told = r"TimeoutError: rank 0 waited 5 s for the other ranks \(trainer\.timeout\); one of them stalls"
    with pytest.raises(RunError, match=told):
        started(folder, monkeypatch, "1", "5", "hang")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert time.time() - rows[-1]["time"] < 30
    assert newest_whole(folder / "checkpoints")[0] == folder / "checkpoints/step=00000004"
    assert record.read(folder)["again"]


@pytest.mark.distributed
def test_torchruns_own_agent_starts_ranks_again(tmp_path: Path, whole: Path) -> None:
    folder = prepared(tmp_path, *TWO)
    command = ["torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1"]
    command += ["-m", "dying_rank", str(folder), "1", "5", "killed", "once"]
    places = f"{Path(__file__).parent}:{Path(launch.__file__).parents[2]}"
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-m", *command], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert curves(folder) == curves(whole)
    assert last(folder) == last(whole)
    assert [session["from_step"] for session in record.read(folder)["sessions"]] == [0, 4]


@pytest.mark.distributed
def test_ranks_are_started_again_and_end_as_if_nothing_had_been(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepared(tmp_path, *TWO, "trainer.restarts=1")
    assert started(folder, monkeypatch, "1", "5", "killed", "once") == "finished"
    assert curves(folder) == curves(whole)
    assert last(folder) == last(whole)
    known = record.read(folder)
    assert [session["from_step"] for session in known["sessions"]] == [0, 4]
    (event,) = known["events"]
    assert (event["step"], event["kind"], event["what"]) == (4, "restarted", "rank 1 was killed by SIGKILL")


@pytest.mark.distributed
def test_what_starting_again_does_not_mend_is_not_trained_again(tmp_path: Path) -> None:
    folder = prepared(tmp_path, "trainer.restarts=1", "optimizer=adamw", "optimizer.lr=1e20", "trainer.clip_norm=null")
    with pytest.raises(RunError, match=r"RunError: step \d+: the .* lower optimizer\.lr"):
        launch.start(folder)
    assert len(record.read(folder)["sessions"]) == 1


def failure(code: int, timestamp: int, message: str = "") -> SimpleNamespace:
    data = {"message": {"message": message}} if message else {"message": ""}
    return SimpleNamespace(exitcode=code, timestamp=timestamp, error_file_data=data, signal_name=lambda: "SIGSEGV")


def test_the_rank_that_began_it_is_found() -> None:
    lost = failure(1, 10, "RuntimeError: Connection closed by peer")
    assert culprit({0: lost, 1: failure(-11, 10)}) == 1
    assert culprit({0: lost, 3: failure(2, 10, "RunError: the disk is full")}) == 3
    assert culprit({2: failure(1, 11), 5: failure(1, 10)}) == 5
    killed_by_the_agent = failure(-9, 41)
    assert culprit({0: killed_by_the_agent, 1: failure(1, 10, "ImportError: no module")}) == 1
    assert culprit({0: failure(-15, 10), 1: failure(7, 10)}) == 1
    assert words(3, failure(-11, 1)) == "rank 3 was killed by SIGSEGV"
    assert words(3, failure(7, 1)) == "rank 3 ended with exit code 7"
    assert words(3, failure(2, 1, "RunError: full\nmore")) == "rank 3 ended with exit code 2: RunError: full"
