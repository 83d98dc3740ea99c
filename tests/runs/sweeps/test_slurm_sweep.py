"""A sweep by jobs of a real Slurm: two workers on two nodes, one told to stop and one cancelled on the way."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import SMALL, scenes

from mlplatform.cli.main import main
from mlplatform.runs import metrics, record, slurm
from mlplatform.runs.folder import runs_in
from mlplatform.runs.sweeps.standing import is_open, said, standing
from mlplatform.runs.sweeps.study import opened
from mlplatform.runs.sweeps.trials import read

pytestmark = pytest.mark.slurm


def wait(sweep: Path, true: Callable[[], Any], seconds: float = 900) -> None:
    """Wait for something of a sweep; fail with how it stands and what its workers said."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            pytest.fail("\n".join([str(standing(sweep)), *(path.read_text() for path in said(sweep))]))
        time.sleep(0.2)


def words(folder: Path, *more: str) -> list[str]:
    fixed = [*SMALL, "data=jsonl", f"data.path={scenes(folder)}", "data.validation=0.2", "experiment=search"]
    return ["sweep", "--outputs", str(folder / "outputs"), *fixed, "launcher=slurm", *more]


def at_work(sweep: Path) -> dict[str, Path]:
    """Return the run each worker trains just now, by the node it is on."""
    found = {}
    for run in runs_in(sweep.parent, sweep.name):
        known = record.read(run)
        if known["status"] == "running" and metrics.read(run):
            found[str(known["pid"])] = run
    return found


def asked(job: str) -> dict[str, str]:
    """Return what scontrol says of a task."""
    told = slurm.ask("scontrol", "--oneliner", "show", "job", job).split()
    return dict(word.split("=", 1) for word in told if "=" in word)  # type: ignore[misc]


def test_two_workers_share_a_study_and_lose_nothing(
    cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker 0 is told that its time is up and comes back; worker 1 is cancelled; what they leave is gone on with."""
    monkeypatch.chdir(tmp_path)
    sweep = tmp_path / "outputs" / "search"
    many = ["sweep=random", "sweep.trials=4", "sweep.at_once=2", "optimizer.lr=interval(1e-4,1e-2)"]
    slow = ["trainer.max='200 steps'", "trainer.checkpoint_every=null", "launcher.cpus_per_task=4"]
    again = words(tmp_path, *many, *slow)
    assert main([*again, "--dry-run"]) == 0
    script = capfd.readouterr().out
    assert "#SBATCH --array=0-1\n" in script
    assert "-m mlplatform.sweep_worker" in script
    assert not sweep.exists()
    assert main(again) == 0
    assert "of 2 workers is in the queue" in capfd.readouterr().out
    one, two = (row["job"] for row in standing(sweep)["workers"])
    wait(sweep, lambda: len(at_work(sweep)) == 2)
    assert {asked(job)["NodeList"] for job in (one, two)} == {"mlplatform-node1", "mlplatform-node2"}
    begun = set(at_work(sweep).values())
    assert main(again) == 2
    assert "holds a sweep already" in capfd.readouterr().err
    assert main(["sweep", "--continue", str(sweep)]) == 2
    assert "this sweep is running (job" in capfd.readouterr().err

    slurm.ask("scancel", "--signal=USR1", one)
    wait(sweep, lambda: asked(one).get("Restarts") == "1")
    slurm.cancel(two)
    wait(sweep, lambda: not is_open(standing(sweep)))

    rows, runs = read(sweep), runs_in(sweep.parent, sweep.name)
    assert [row["status"] for row in rows] == ["finished"] * 4, [path.read_text() for path in said(sweep)]
    assert len({row["values"]["optimizer.lr"] for row in rows}) == len({row["trial"] for row in rows}) == 4
    assert sorted(run for row in rows for run in row["runs"]) == sorted(str(run) for run in runs)
    sessions = {run: record.read(run)["sessions"] for run in runs}
    assert sum(len(each) for each in sessions.values()) == 6  # four, and two that were given back
    for run, each in sessions.items():
        assert [part["from_step"] for part in each] == [0, *(part["to_step"] for part in each[:-1])]
        assert len(each) == 1 or run in begun
        assert [row["step"] for row in metrics.read(run) if "train/loss" in row] == list(range(1, 201))
    told = "".join(path.read_text() for path in said(sweep))
    finished = re.findall(r"^trial +(\d+)  finished", told, re.MULTILINE)
    assert sorted(map(int, finished)) == sorted(row["trial"] for row in rows)
    assert (sweep / "summary.txt").read_text().startswith("4 finished\nbest: trial ")

    assert main(["sweep", "--continue", str(sweep), "sweep.trials=5", "sweep.at_once=1"]) == 0
    capfd.readouterr()
    wait(sweep, lambda: not is_open(standing(sweep)))
    assert main(["status", str(sweep), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["trials"], found["ended"]) == (5, {"finished": 5})
    assert len({row["values"]["optimizer.lr"] for row in read(sweep)}) == 5
    assert main(["logs", str(sweep)]) == 0
    assert "finished" in capfd.readouterr().out
    assert main(["cancel", str(sweep)]) == 2
    assert "there is nothing to cancel" in capfd.readouterr().err
    study = opened(f"journal:{sweep / 'study.journal'}")
    assert len(study.get_all_trials(study.get_all_studies()[0]._study_id)) == 7


def test_cancelling_a_sweep_ends_its_jobs_and_it_can_go_on(
    cluster: None, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = tmp_path / "outputs" / "search"
    assert main(words(tmp_path, "seed=1,2", "sweep.at_once=2", "launcher.options=[--hold]")) == 0
    assert [row["status"] for row in standing(sweep)["workers"]] == ["queued", "queued"]
    assert main(["cancel", str(sweep)]) == 0
    assert "2 workers ended" in capfd.readouterr().out
    assert main(["status", str(sweep)]) == 0
    said_now = capfd.readouterr()
    assert "0 of 2 trials ended" in said_now.out
    assert f"mlplatform sweep --continue {sweep}" in said_now.err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["launcher.partition=mian"], "no partition 'mian' (did you mean 'main'?)"),
        (["launcher.nodes=2"], "a trial of a sweep runs on one node"),
        (["sweep=grid", "sweep.storage='sqlite:///study.db'"], "SQLite can't be shared by machines"),
        (["launcher.partition=brief", "launcher.time='30 min'"], "Requested time limit is invalid"),
    ],
)
def test_what_can_not_be_leaves_nothing(
    cluster: None, tmp_path: Path, more: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path, "seed=1,2", *more)) == 2
    said_now = capfd.readouterr().err
    assert told in said_now
    assert said_now.count("\n") == 1
    assert not (tmp_path / "outputs" / "search").exists()
