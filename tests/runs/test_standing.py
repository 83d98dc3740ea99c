"""How runs of this machine stand, and stopping one for good. Those of a cluster are in test_slurm.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import Child, prepared

from mlplatform.errors import RunError
from mlplatform.runs import metrics, record
from mlplatform.runs.multirun import begin, runs_of
from mlplatform.runs.standing import cancel, standing
from mlplatform.training.checkpoints import newest_whole


def test_a_run_of_this_machine_is_cancelled_after_its_step(tmp_path: Path) -> None:
    run = prepared(
        tmp_path, "trainer.max='100000 steps'", "trainer.validate_every=null", "trainer.checkpoint_every=null"
    )
    child = Child(run)
    while child.running and len(metrics.read(run)) < 3:
        child.process.join(0.05)
    [now] = standing([run])
    assert (now["status"], now["max"]) == ("running", "100000 steps")
    assert now["step"] >= 3
    assert cancel([run]) == ["cancelled"]
    assert child.end()[0] == 0
    assert newest_whole(run / "checkpoints")[0] is not None
    assert standing([run])[0]["status"] == "cancelled"
    with pytest.raises(RunError, match="this run is cancelled; there is nothing to cancel"):
        cancel([run])


def test_killed_and_waiting_runs(tmp_path: Path) -> None:
    killed, waiting, elsewhere = (prepared(tmp_path, f"seed={seed}") for seed in range(3))
    (killed / ".lock").touch()
    record.update(waiting, status="queued")
    record.update(elsewhere, host="node17")
    assert [row["status"] for row in standing([killed, waiting, elsewhere])] == ["killed", "queued", "running"]
    with pytest.raises(RunError, match="it runs on node17; stop it there"):
        cancel([waiting, elsewhere])
    assert record.read(waiting)["status"] == "queued"
    assert cancel([waiting]) == ["cancelled"]


def test_two_multiruns_of_one_second_have_a_folder_each(tmp_path: Path) -> None:
    one, two = prepared(tmp_path), prepared(tmp_path, "seed=1")
    homes = [begin([run], ["mlplatform"]) for run in (one, two)]
    assert homes[0] != homes[1]
    assert [runs_of(home) for home in homes] == [[one], [two]]
    assert runs_of(one) == []
