"""Jobs of a real Slurm: slurmctld and two nodes on this machine, by scripts/slurm_local.sh."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import SMALL, curves, finished, prepared, scenes

from mlplatform.errors import RunError, SpecError
from mlplatform.runs import metrics, multirun, record, slurm
from mlplatform.runs.config_file import read_shown
from mlplatform.runs.folder import OUTPUT, runs_in
from mlplatform.runs.launch import start
from mlplatform.runs.resume import resume
from mlplatform.runs.standing import cancel, standing

TOP = Path(__file__).parents[2]
ON_SLURM = ["launcher=slurm", "launcher.time='5 min'"]
ONCE = ["trainer.validate_every=null", "trainer.checkpoint_every=null"]
pytestmark = pytest.mark.slurm


def wait(run: Path, true: Callable[[], bool], seconds: float = 240) -> None:
    """Wait for something of a run; fail with what the run said."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            said = (run / OUTPUT).read_text(errors="replace") if (run / OUTPUT).exists() else "nothing"
            pytest.fail(f"{standing([run])}\n{said}")
        time.sleep(0.2)


def ended(run: Path) -> bool:
    """Whether neither the record nor the job of a run is open any more."""
    return record.read(run)["status"] in ("finished", "failed", "cancelled") and job(run).ended


def job(run: Path) -> slurm.Job:
    number = record.read(run)["job"]
    return slurm.jobs([number])[number]


def said_of(run: Path) -> dict[str, str]:
    """Return what scontrol says of a run's job."""
    words = slurm.ask("scontrol", "--oneliner", "show", "job", record.read(run)["job"]).split()
    return dict(word.split("=", 1) for word in words if "=" in word)  # type: ignore[misc]


def queued(folder: Path, *overrides: str) -> Path:
    """Submit a small run and return its folder."""
    run = prepared(folder, *ON_SLURM, *overrides)
    assert start(run) == "queued"
    return run


def weights(run: Path) -> dict[str, bytes]:
    """Return the files of weights and optimizer of a run's newest checkpoint."""
    newest = max((run / "checkpoints").iterdir())
    return {path.name: path.read_bytes() for path in newest.rglob("*.safetensors")}


def test_an_array_runs_the_code_that_was_submitted(cluster: None, tmp_path: Path) -> None:
    """A grid of two waits; the checkout it came from is broken meanwhile; both tasks run as if nothing had happened."""
    checkout, work = tmp_path / "checkout", tmp_path / "work"
    for name in ("mlplatform", "conf", "recipes"):
        shutil.copytree(TOP / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    work.mkdir()
    words = [
        *SMALL,
        *ONCE,
        "data=jsonl",
        f"data.path={scenes(tmp_path)}",
        "launcher=slurm",
        "launcher.options=[--hold]",
    ]
    command = [sys.executable, "-m", "mlplatform.cli.main", "train", "--multirun", *words, "optimizer.lr=1e-3,3e-3"]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "of 2 runs is in the queue" in done.stdout
    [home] = (work / "outputs" / "default" / "multirun").iterdir()
    one, two = multirun.runs_of(home)
    assert [one, two] == runs_in(work / "outputs")
    number = record.read(one)["job"].partition("_")[0]
    assert [record.read(run)["job"] for run in (one, two)] == [f"{number}_0", f"{number}_1"]
    assert [row["status"] for row in standing([one, two])] == ["queued", "queued"]

    with (checkout / "mlplatform" / "runs" / "__init__.py").open("a") as file:
        file.write("raise SystemExit('this is the edited checkout')\n")
    broken = subprocess.run([sys.executable, "-c", "import mlplatform.runs"], env=environment, cwd=work)
    assert broken.returncode == 1
    slurm.ask("scontrol", "release", number)
    for run, rate in ((one, 1e-3), (two, 3e-3)):
        wait(run, lambda run=run: ended(run))
        known = record.read(run)
        assert (known["status"], known["steps"]) == ("finished", 8)
        assert read_shown(run)["optimizer"]["lr"] == rate
        assert known["code"] == record.read(one)["code"]
        assert "finished after 8 steps" in (run / OUTPUT).read_text()
    shared = [(run / "code" / "mlplatform" / "worker.py").stat().st_ino for run in (one, two)]
    assert shared[0] == shared[1]
    assert curves(one) != curves(two)


def test_two_nodes_train_as_one_process_does(cluster: None, tmp_path: Path) -> None:
    run = queued(tmp_path, "launcher.nodes=2", "strategy=ddp", "model.trunk.layer.dropout=0")
    alone = finished(tmp_path, "model.trunk.layer.dropout=0")
    wait(run, lambda: ended(run))
    assert record.read(run)["status"] == "finished", (run / OUTPUT).read_text()
    assert said_of(run)["NumNodes"] == "2"
    for ours, theirs in zip(curves(run), curves(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


TRACKED = [
    "logger=several",
    "logger.loggers=[{kind: wandb, mode: offline}, {kind: tensorboard}, {kind: mlflow}]",
]


def test_a_requeued_run_ends_with_the_weights_of_an_undisturbed_one(cluster: None, tmp_path: Path) -> None:
    """Also at the trackers it is one run, which has every step once."""
    options = [*ONCE, "trainer.max='400 steps'"]
    run = queued(tmp_path, *options, *TRACKED)
    wait(run, lambda: len(metrics.read(run)) > 5)
    slurm.ask("scancel", "--signal=USR1", record.read(run)["job"])
    undisturbed = finished(tmp_path, *options)
    wait(run, lambda: ended(run))
    known = record.read(run)
    assert said_of(run)["Restarts"] == "1", (run / OUTPUT).read_text()
    assert (known["status"], known["steps"], len(known["sessions"])) == ("finished", 400, 2)
    assert 5 < known["sessions"][1]["from_step"] == known["sessions"][0]["to_step"] < 400
    assert runs_in(tmp_path / "outputs") == sorted([run, undisturbed])
    assert curves(run) == curves(undisturbed)
    assert weights(run) == weights(undisturbed)

    losses = [(row["step"], row["train/loss"]) for row in metrics.read(run)]
    files = [wandb_file.read(path) for path in sorted(run.glob("wandb/offline-run-*/*.wandb"))]
    assert [file.id for file in files] == [known["wandb_id"]] * 2
    assert [step for file in files for step in file.curve("train/loss")] == [step for step, _ in losses]
    assert [value for file in files for value in file.curve("train/loss").values()] == [loss for _, loss in losses]
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [step for step, _ in losses]
    with contextlib.closing(sqlite3.connect(run.parent.parent / "mlflow.db")) as base:
        sent = base.execute("SELECT step, value FROM metrics WHERE key = 'train/loss' ORDER BY step").fetchall()
        assert sent == losses
        assert base.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]


@pytest.mark.parametrize("cause", ["preempted", "out of time"])
def test_what_slurm_itself_interrupts_goes_on_in_its_folder(cluster: None, tmp_path: Path, cause: str) -> None:
    """A job of a higher partition takes both nodes; or the limit of a minute comes, and with it the notice."""
    where = ["launcher.partition=spare"] if cause == "preempted" else ["launcher.time='1 min'", "launcher.notice=40"]
    run = queued(tmp_path, *ONCE, "trainer.max='1000000 steps'", *where)
    wait(run, lambda: len(metrics.read(run)) > 5)
    if cause == "preempted":
        size = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
        slurm.ask("sbatch", "--parsable", *size, "--wrap=sleep 1")
    wait(run, lambda: said_of(run).get("Restarts") == "1")
    wait(run, lambda: len(record.read(run)["sessions"]) == 2)
    first, second = record.read(run)["sessions"]
    assert (first["status"], second["from_step"]) == ("preempted", first["to_step"])
    assert cancel([run]) == ["cancelled"]
    steps = [row["step"] for row in metrics.read(run)]
    assert steps == list(range(1, len(steps) + 1))


def test_a_cancelled_run_saves_and_stays_cancelled(cluster: None, tmp_path: Path) -> None:
    run = queued(tmp_path, *ONCE, "trainer.max='100000 steps'")
    waiting = queued(tmp_path, "launcher.options=[--hold]")
    with pytest.raises(RunError, match="of this run is pending; wait for it, or mlplatform cancel"):
        resume(waiting, {})
    assert cancel([waiting]) == ["cancelled"]
    wait(run, lambda: len(metrics.read(run)) > 5)
    assert cancel([run]) == ["cancelled"]
    assert weights(run)
    time.sleep(3)
    for one in (run, waiting):
        assert job(one).state == "CANCELLED"
        assert standing([one])[0]["status"] == "cancelled"
        with pytest.raises(RunError, match="this run is cancelled; there is nothing to cancel"):
            cancel([one])


@pytest.mark.parametrize(
    ("overrides", "error", "told"),
    [
        (["launcher.partition=mian"], SpecError, r"no partition 'mian' \(did you mean 'main'\?\); it has brief, main"),
        (["launcher.nodes=2"], SpecError, r"single runs on one device and this run has 2 processes; use strategy=ddp"),
        (["launcher.gres=gpu:2", "trainer.accelerator=cuda"], SpecError, r"gpu:2 is 2 GPUs .* trainer\.devices=1"),
        (["trainer.accelerator=cuda"], SpecError, r"no GPU is asked for; set launcher\.gres=gpu:1"),
        (["launcher.time='2 fortnights'"], SpecError, r"'2 fortnights' is no time; write it as '90 min'"),
        (["launcher.time='1 min'"], SpecError, r"'1 min' is not longer than launcher\.notice=120 seconds"),
    ],
)
def test_what_the_cluster_has_not_is_an_error_before_anything_is_written(
    cluster: None, tmp_path: Path, overrides: list[str], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        prepared(tmp_path, *ON_SLURM, *overrides)
    assert not (tmp_path / "outputs").exists()


def test_a_job_the_cluster_refuses_leaves_no_folder(cluster: None, tmp_path: Path) -> None:
    """Over the partition's limit, which only sbatch knows: its own words, in one line."""
    run = prepared(tmp_path, "launcher=slurm", "launcher.partition=brief", "launcher.time='30 min'")
    with pytest.raises(RunError, match=r"^sbatch: error: .*Requested time limit is invalid") as caught:
        start(run)
    assert "\n" not in str(caught.value)
    assert runs_in(tmp_path / "outputs") == []
    several = [prepared(tmp_path, "launcher=slurm", "launcher.partition=brief", f"seed={seed}") for seed in (1, 2)]
    home = multirun.begin(several, [])
    for folder in several:  # the limit is changed behind our back
        write_time(folder, "30 min")
    with pytest.raises(RunError, match="Requested time limit is invalid"):
        multirun.queue(home, several)
    assert not any(folder.exists() for folder in (home, *several))


def write_time(folder: Path, time: str) -> None:
    """Set the limit in a run's config."""
    from mlplatform.runs.config_file import read_config, write_config

    config: dict[str, Any] = read_config(folder)
    write_config(folder, {**config, "launcher": {**config["launcher"], "time": time}})
