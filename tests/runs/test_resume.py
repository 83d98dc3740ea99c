"""Going on with a run: what may change, what may not, and what is said."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from test_worker import KilledInside, last
from tiny_runs import Child, curves, files, finished, prepared

from mlplatform.errors import CheckpointError, RunError, SpecError
from mlplatform.runs import metrics, record
from mlplatform.runs.config_file import private_file, read_config
from mlplatform.runs.resume import resume


def killed(tmp_path: Path, *overrides: str) -> Path:
    """Return a run that was killed with checkpoints of steps 2 and 4."""
    folder = prepared(tmp_path, *overrides)
    assert Child(folder, KilledInside(3)).end()[0] == -signal.SIGKILL
    return folder


def test_a_killed_run_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    whole, folder = finished(tmp_path), killed(tmp_path)
    assert resume(folder, {}) == "finished"
    assert curves(folder) == curves(whole)
    assert last(folder) == last(whole)
    assert [session["from_step"] for session in record.read(folder)["sessions"]] == [0, 4]


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    folder = finished(tmp_path, "schedule=constant")
    before = curves(folder)
    assert resume(folder, {"trainer.max": "12 steps", "trainer.keep": 1}) == "finished"
    longer = finished(tmp_path, "schedule=constant", "trainer.max='12 steps'")
    assert curves(folder)[: len(before)] == before
    assert curves(folder) == curves(longer)
    assert last(folder)["model.safetensors"] == last(longer)["model.safetensors"]
    known = record.read(folder)
    assert (known["steps"], known["changes"]) == (12, [{"trainer.max": "12 steps", "trainer.keep": 1}])
    assert read_config(folder)["trainer"]["max"] == "12 steps"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optimizer.lr": 5.0}, r"optimizer\.lr=5\.0 \(the run has 0\.\d+\): that would be another run"),
        (
            {"model.trunk.depth": 3, "seed": 1},
            r"model\.trunk\.depth=3 \(the run has 1\), seed=1 \(the run has 0\): that",
        ),
        ({"trainer.maks": "9 steps"}, r"trainer\.maks='9 steps' \(the run has None\): that would be another run"),
    ],
)
def test_a_change_that_would_make_it_another_run_is_refused(
    tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    folder = prepared(tmp_path)
    before = files(folder)
    with pytest.raises(RunError, match=told) as caught:
        resume(folder, changes)
    assert f"mlplatform train init_from={folder}" in str(caught.value)
    assert files(folder) == before


def test_the_checkpoint_of_another_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    folder = killed(tmp_path)
    deeper = finished(tmp_path, "model.trunk.depth=2", "experiment=deeper")
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(deeper / "checkpoints", folder / "checkpoints")
    before = files(folder)
    with pytest.raises(
        CheckpointError, match=r"step=00000008: the checkpoint is of another model: trunk\.layers\.1\..*own"
    ):
        resume(folder, {"strategy.kind": "fsdp", "trainer.devices": 2})
    assert files(folder) == before


def test_a_change_to_what_the_run_has_is_none(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    assert resume(folder, {"seed": 0, "trainer.max": "8 steps"}) == "finished"
    assert "changes" not in record.read(folder)


def test_a_changed_value_is_checked(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    before = files(folder)
    with pytest.raises(SpecError, match=r"trainer\.keep"):
        resume(folder, {"trainer.keep": -1})
    assert files(folder) == before


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    before = files(folder)
    with pytest.raises(RunError, match=r"this run is finished; a longer one: mlplatform resume .* trainer\.max="):
        resume(folder, {})
    assert files(folder) == before


def test_a_running_run_is_left_alone(tmp_path: Path) -> None:
    folder = prepared(tmp_path, "trainer.max='5000 steps'")
    child = Child(folder)
    try:
        while len(metrics.read(folder)) < 1 and child.running:
            pass
        with pytest.raises(RunError, match="this run is still running"):
            resume(folder, {"trainer.max": "9000 steps"})
        assert read_config(folder)["trainer"]["max"] == "5000 steps"
    finally:
        child.signal(signal.SIGKILL)
        child.end()


def test_a_folder_that_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run\.json; this is no run folder"):
        resume(tmp_path, {})


def test_a_masked_value_lost_with_the_machine_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finished(tmp_path, "prompt='To be, or not'")
    monkeypatch.setenv("PROMPT", "To be, or not")
    folder = killed(tmp_path, "prompt='${oc.env:PROMPT}'")
    monkeypatch.delenv("PROMPT")
    private_file(folder).unlink()
    with pytest.raises(RunError, match=r"prompt was masked .*; give it again: mlplatform resume .* prompt=\.\.\."):
        resume(folder, {})
    assert resume(folder, {"prompt": "To be, or not"}) == "finished"
    assert last(folder) == last(whole)
    assert not any(b"or not" in data for name, data in files(folder).items() if not name.startswith("tokenizer"))
