"""Working a run folder: what it holds afterwards, and how it ends when it is stopped, killed, wrong or out of room."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_runs
import yaml
from tiny_runs import Child, curves, files, finished, prepared

from mlplatform.errors import CheckpointError, RunError
from mlplatform.runs import metrics, record
from mlplatform.runs.config_file import read_shown
from mlplatform.runs.folder import is_held
from mlplatform.runs.launch import start
from mlplatform.runs.worker import Watch, main, run
from mlplatform.training.checkpoints import checkpoints, newest_whole, step_of


def last(folder: Path) -> dict[str, bytes]:
    """Return the files of a run's last checkpoint: weights, optimizer, clock, data position, random numbers."""
    path, _ = newest_whole(folder / "checkpoints")
    assert path is not None
    state = json.loads((path / "state.json").read_text())
    del state["clock"]["seconds"]
    tensors = {name: data for name, data in files(path).items() if name.endswith(".safetensors")}
    return {**tensors, "state.json": json.dumps(state, sort_keys=True).encode()}


def wait_for(folder: Path, rows: int, child: Child) -> None:
    """Wait until a run has logged that many lines, or ended."""
    deadline = time.monotonic() + 90
    while len(metrics.read(folder)) < rows and child.running:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_finished_run_holds_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(tmp_path, "prompt='To be'")
    names = set(files(folder)) - {".lock"}
    tops = {name.partition("/")[0] for name in names}
    assert tops == {
        "run.json", "config.yaml", "overrides.yaml", "metrics.jsonl", "metrics.csv", "log.txt", "env.txt",
        "checkpoints", "tokenizer", "samples",
    }  # fmt: skip
    known = record.read(folder)
    assert (known["status"], known["steps"], known["tokens"]) == ("finished", 8, 8 * 4 * 32)
    losses = {row["step"]: row["validation/loss"] for row in metrics.read(folder) if "validation/loss" in row}
    assert list(losses) == [4, 8]
    assert known["metrics"]["validation/loss"] == losses[8]
    assert known["best"] == {"step": min(losses, key=losses.__getitem__), "validation/loss": min(losses.values())}
    (session,) = known["sessions"]
    assert (session["from_step"], session["to_step"], session["status"]) == (0, 8, "finished")
    assert known["data"]["fingerprint"]
    assert yaml.safe_load((folder / "overrides.yaml").read_text()) == ["prompt='To be'"]
    sample = (folder / "samples" / "step=00000008.txt").read_text()
    assert sample.startswith("To be")
    assert len(sample) > len("To be")
    printed = capsys.readouterr().out
    for line in ("model  llama, 17.4K parameters, dim 32, 1 layers; task causal_lm", "finished after 8 steps"):
        assert line in printed
        assert line in (folder / "log.txt").read_text()
    assert f"bits per byte {known['metrics']['validation/bits_per_byte']:.4f}" in printed
    assert all(
        re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in (folder / "log.txt").read_text().split("\n")[:3]
    )


def test_a_finished_run_is_never_written_into(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    before = files(folder)
    with pytest.raises(RunError, match="this run is finished, and a finished run is never written into"):
        run(folder)
    assert main([str(folder)]) == 2
    assert files(folder) == before


def test_a_running_run_is_left_alone_by_a_second_worker(tmp_path: Path) -> None:
    folder = prepared(tmp_path, "trainer.max='5000 steps'")
    child = Child(folder)
    try:
        wait_for(folder, 2, child)
        with pytest.raises(RunError, match="this run is still running"):
            run(folder)
        assert record.read(folder)["status"] == "running"
        assert is_held(folder)
    finally:
        child.signal(signal.SIGKILL)
        child.end()
    assert not is_held(folder)


def test_the_folder_comes_from_the_environment_too(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    process = subprocess.run(
        [sys.executable, "-m", "mlplatform.worker"],
        env={**os.environ, "MLPLATFORM_RUN": str(folder)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert record.read(folder)["status"] == "finished"


def test_a_worker_without_a_folder_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MLPLATFORM_RUN", raising=False)
    assert main([]) == 2
    assert capsys.readouterr().err == "error: python -m mlplatform.worker RUN_FOLDER: give the folder\n"


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_any_moment_and_resumed_it_is_the_undisturbed_run(tmp_path: Path, seed: int) -> None:
    """Each session is killed some milliseconds after some line, wherever that is: in a step, a validation, a save."""
    chance = random.Random(seed)
    length = ("trainer.max='40 steps'", "trainer.ema=0.9")
    whole = finished(tmp_path, *length)
    folder = prepared(tmp_path, *length)
    kills = 0
    for _ in range(4):
        child = Child(folder)
        wait_for(folder, len(metrics.read(folder)) + chance.randrange(3, 14), child)
        time.sleep(chance.random() * 0.08)
        child.signal(signal.SIGKILL)
        kills += child.end()[0] == -signal.SIGKILL
        if record.read(folder)["status"] == "finished":
            break
    assert kills >= 2
    assert start(folder) == "finished"
    assert curves(folder) == curves(whole)
    assert last(folder) == last(whole)
    assert len(record.read(folder)["sessions"]) > kills


class KilledInside(Watch):
    """Kills the process when the n-th checkpoint is written and not yet in place."""

    def __init__(self, save: int) -> None:
        self.left = save

    def saving(self, checkpoint: Path) -> None:
        self.left -= 1
        if self.left == 0:
            (checkpoint / "model.safetensors").write_bytes(b"cut short")
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_inside_a_save_the_checkpoint_before_is_whole(tmp_path: Path) -> None:
    whole, folder = finished(tmp_path), prepared(tmp_path)
    assert Child(folder, KilledInside(3)).end()[0] == -signal.SIGKILL
    assert [step_of(path) for path in checkpoints(folder / "checkpoints")] == [2, 4]
    assert list((folder / "checkpoints").glob(".tmp-*"))
    assert start(folder) == "finished"
    assert not list((folder / "checkpoints").glob(".tmp-*"))
    assert curves(folder) == curves(whole)
    assert last(folder) == last(whole)


def test_killed_after_the_last_checkpoint_no_step_is_done_again(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    before, end = curves(folder), last(folder)
    record.update(folder, status="running")  # as it stands while the sample is being written
    (folder / "samples" / "step=00000008.txt").unlink()
    assert start(folder) == "finished"
    assert (curves(folder), last(folder)) == (before, end)
    assert record.read(folder)["steps"] == 8
    assert (folder / "samples" / "step=00000008.txt").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_used(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, folder = finished(tmp_path), prepared(tmp_path)
    assert Child(folder, KilledInside(4)).end()[0] == -signal.SIGKILL
    damaged = folder / "checkpoints" / "step=00000006" / name
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert start(folder) == "finished"
    assert re.search(
        rf"step=00000006 is damaged: {name}.*\n.*using the one before: .*step=00000004", capsys.readouterr().out
    )
    assert "resumed at step 4" in (folder / "log.txt").read_text()
    assert curves(folder) == curves(whole)
    assert last(folder) == last(whole)


def test_sigterm_saves_and_marks_the_run_preempted(tmp_path: Path) -> None:
    length = "trainer.max='600 steps'"
    folder = prepared(tmp_path, length)
    child = Child(folder)
    wait_for(folder, 5, child)
    child.signal(signal.SIGTERM)
    code, said = child.end()
    assert code == 0
    assert "SIGTERM: stopping after step" in said
    known = record.read(folder)
    saved, _ = newest_whole(folder / "checkpoints")
    assert saved is not None
    assert (known["status"], known["steps"]) == ("preempted", step_of(saved))
    assert 5 <= known["steps"] < 600
    assert metrics.read(folder)[-1]["step"] == known["steps"]
    assert (folder / "metrics.csv").exists()
    assert not (folder / "error.txt").exists()


def test_sigterm_before_the_first_step_marks_the_run_preempted(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    child = Child(folder)
    while not (folder / ".spare").exists() and child.running:
        time.sleep(0.001)
    child.signal(signal.SIGTERM)
    child.end()
    assert record.read(folder)["status"] == "preempted"
    assert start(folder) == "finished"


def test_a_second_sigint_stops_at_once_and_earlier_checkpoints_are_whole(tmp_path: Path) -> None:
    folder = prepared(tmp_path, "trainer.max='5000 steps'", "batch.sequences=512", "trainer.checkpoint_every='1 steps'")
    child = Child(folder)  # long steps, so that the second comes within the first one's step
    wait_for(folder, 2, child)
    child.signal(signal.SIGINT)
    time.sleep(0.1)
    child.signal(signal.SIGINT)
    code, said = child.end()
    known = record.read(folder)
    assert newest_whole(folder / "checkpoints")[0] is not None
    assert (code, known["status"]) == (2, "failed")
    assert "interrupted a second time: stopped at once, without saving" in said


def test_a_loss_that_is_not_finite_fails_the_run_and_the_reason_is_kept(tmp_path: Path) -> None:
    folder = prepared(
        tmp_path, "optimizer=adamw", "optimizer.lr=1e20", "trainer.clip_norm=null", "schedule.warmup='3 steps'"
    )
    with pytest.raises(RunError, match=r"step \d+"):
        start(folder)
    known = record.read(folder)
    assert known["status"] == "failed"
    assert known["error"].startswith("RunError: ")
    text = (folder / "error.txt").read_text()
    assert text.startswith("Traceback")
    assert known["error"].removeprefix("RunError: ") in text
    assert (folder / "metrics.csv").exists()
    assert not (folder / ".spare").exists()


def test_a_full_disk_fails_the_run_with_a_whole_checkpoint_and_room_lets_it_go_on(
    tmp_path: Path, full_disk: Path
) -> None:
    length = ("trainer.max='24 steps'", "trainer.keep=100")
    whole = finished(tmp_path, *length)
    folder = prepared(tmp_path, *length, f"outputs={full_disk / 'outputs'}")
    with pytest.raises(RunError, match=r"No space left on device|the disk is full") as caught:
        start(folder)
    assert str(caught.value).count("\n") == 0
    known = record.read(folder)
    assert known["status"] == "failed"
    assert known["error"] == f"RunError: {caught.value}"
    path, notes = newest_whole(folder / "checkpoints")
    assert path is not None
    assert notes == []
    moved = shutil.copytree(folder, tmp_path / "roomy" / folder.name)
    assert start(moved) == "finished"
    assert curves(moved) == curves(whole)
    assert last(moved) == last(whole)


class Limited(Watch):
    """From the n-th checkpoint on, no file may be larger than 20 kB."""

    def __init__(self, save: int) -> None:
        self.left = save

    def saving(self, checkpoint: Path) -> None:
        import resource

        self.left -= 1
        if self.left == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def test_a_file_that_can_not_grow_fails_the_run_with_the_checkpoint_before(tmp_path: Path) -> None:
    whole, folder = finished(tmp_path), prepared(tmp_path)
    code, _ = Child(folder, Limited(2)).end()
    assert code == 1
    known = record.read(folder)
    assert known["status"] == "failed"
    assert re.search(r"step=00000006: can't write the checkpoint: .*step=00000004, is whole", known["error"])
    assert [step_of(path) for path in checkpoints(folder / "checkpoints")] == [2, 4]
    assert start(folder) == "finished"
    assert record.read(folder)["error"] is None
    assert not (folder / "error.txt").exists()
    assert (curves(folder), last(folder)) == (curves(whole), last(whole))


def test_a_run_whose_data_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    assert Child(folder, KilledInside(3)).end()[0] == -signal.SIGKILL
    path = tiny_runs.scenes(tmp_path)
    path.write_text(path.read_text().replace("the", "teh"))
    with pytest.raises(RunError, match=r"the data changed since the run began: fingerprint was .* and is "):
        start(folder)


def test_secrets_reach_the_run_and_no_file_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted, typed = "Plant-the-Token-7f3", "hf_" + "Qq7" * 9
    monkeypatch.setenv("PLANTED", planted)
    overrides = ["logger=several", "prompt='${oc.env:PLANTED}'", f"logger.loggers.1.group={typed}"]
    folder = finished(tmp_path, *overrides, "logger.loggers.1.mode=offline")
    shown = read_shown(folder)
    assert shown["prompt"] == "***"
    assert shown["logger"]["loggers"][1]["group"] == "***"
    found = {name for name, data in files(folder).items() if planted.encode() in data}
    assert found == set()
    assert planted in capsys.readouterr().out  # the sample goes on from the real prompt
    assert (folder / "samples" / "step=00000008.txt").read_text().startswith("***")
    found = {name for name, data in files(folder).items() if typed.encode() in data}
    assert all(name.endswith(".wandb") for name in found)  # the group itself, which W&B was told to use
    assert len(found) == 1


def test_a_secret_in_an_error_is_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", str(tiny_runs.scenes(tmp_path)))
    folder = prepared(tmp_path, "data.path='${oc.env:PLACE}'")
    place = Path(os.environ["PLACE"])
    place.rename(place.with_name("gone.jsonl"))
    with pytest.raises(Exception, match=re.escape(str(place))):
        start(folder)
    assert record.read(folder)["status"] == "failed"
    assert "***" in (folder / "error.txt").read_text()
    assert not any(str(place).encode() in data for data in files(folder).values())


def test_a_masked_lm_run_ends_without_a_sample(tmp_path: Path) -> None:
    overrides = ["task=masked_lm", "tokenizer=masked_bpe", "model=bert", "model.trunk.dim=32", "model.trunk.depth=1"]
    small = ["model.trunk.layer.attention.heads=2", "model.trunk.layer.mlp.width=48", "model.trunk.input.vocab=300"]
    result = tiny_runs.compose(
        "train",
        [*overrides, *small, "model.trunk.context_length=64", *tiny_runs.SMALL[-8:], "data=jsonl",
         f"data.path={tiny_runs.scenes(tmp_path)}", f"outputs={tmp_path / 'outputs'}"],
    ).check()  # fmt: skip
    folder, experiment = tiny_runs.prepare(result.config, overrides=[], argv=[])
    assert start(folder, experiment) == "finished"
    assert not (folder / "samples").exists()
    assert "validation/loss" in record.read(folder)["metrics"]


def test_a_run_without_a_checkpoint_can_not_be_loaded(tmp_path: Path) -> None:
    from mlplatform.runs.export import load_run

    with pytest.raises(CheckpointError, match="no whole checkpoint yet"):
        load_run(prepared(tmp_path))
