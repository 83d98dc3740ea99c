"""A task of a job before and after its training, without a cluster: ranks, and signals that come too early."""

from __future__ import annotations

import signal
from pathlib import Path

from tiny_runs import Child, curves, finished, prepared

from mlplatform.runs import record
from mlplatform.runs.slurm_task import BY_SLURM, begin


def test_a_task_takes_the_rank_srun_gave_it() -> None:
    given = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_NODEID": "1"}
    outside = dict(given)
    begin(outside)
    assert outside == given
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    try:
        inside = {**given, BY_SLURM: "requeue"}
        begin(inside)
        alone = {**given, BY_SLURM: "requeue", "SLURM_NTASKS": "1"}
        begin(alone)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK")
    assert [inside[name] for name in ranks] == ["5", "1", "8", "4", "1", "1"]
    assert not any(name in alone for name in ranks)


def test_a_signal_that_comes_before_the_handlers_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    undisturbed, run = finished(tmp_path), prepared(tmp_path)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        child = Child(run, early=number)
        code, said = child.end()
        assert (code, record.read(run)["status"]) == (0, "preempted"), f"{number.name}: {said}"
    child = Child(run)
    code, said = child.end()
    assert code == 0, said
    assert curves(run) == curves(undisturbed)


def test_usr1_in_the_middle_saves_as_sigterm_does(tmp_path: Path) -> None:
    run = prepared(
        tmp_path, "trainer.max='100000 steps'", "trainer.validate_every=null", "trainer.checkpoint_every=null"
    )
    child = Child(run)
    while child.running and not (run / "metrics.jsonl").exists():
        child.process.join(0.05)
    child.signal(signal.SIGUSR1)
    code, said = child.end()
    known = record.read(run)
    assert (code, known["status"]) == (0, "preempted"), said
    assert "SIGUSR1: stopping after step" in said
    assert (run / "checkpoints" / f"step={known['steps']:08d}").is_dir()
