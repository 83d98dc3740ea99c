"""The proof itself, for real: it holds for a sound run, and a run that is not resumed exactly fails it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from tiny_runs import SMALL, composed, scenes

from mlplatform.cli.compose import compose
from mlplatform.errors import RunError
from mlplatform.runs import record
from mlplatform.runs.verify_resume import BATCHES, Killer, batches_of, compare, shortened, verify_resume
from mlplatform.training.checkpoints import MANIFEST, newest_whole


def test_a_sound_run_is_proved_and_a_falsified_one_is_not(tmp_path: Path) -> None:
    said: list[str] = []
    config = composed(tmp_path, "optimizer=muon", "batch.workers=1", "trainer.ema=0.9").config
    found = verify_resume(config, argv=["mlplatform", "verify-resume"], steps=8, say=said.append)
    assert found["equal"] is True
    killed, inside = found["killed after a step"], found["killed inside a save"]
    assert (killed["resumed_at"], killed["differences"]) == (3, [])
    assert (inside["resumed_at"], inside["differences"]) == (3, [])
    assert said[1:] == [
        "killed after a step: resumed at step 3; batches, losses, weights and optimizer are equal, bit for bit",
        "killed inside a save: resumed at step 3; batches, losses, weights and optimizer are equal, bit for bit",
    ]
    whole, other = Path(found["undisturbed"]), Path(killed["run"])
    assert record.read(whole)["verify_resume"] == found
    assert [len(record.read(Path(run))["sessions"]) for run in (whole, other)] == [1, 2]
    assert list(batches_of(whole)) == list(range(1, 9))
    assert len(set(batches_of(whole).values())) == 8

    lines = (other / BATCHES).read_text().splitlines()
    assert len(lines) > 8  # the steps that were done twice
    row = json.loads(lines[-1])
    (other / BATCHES).write_text("\n".join([*lines[:-1], json.dumps({**row, "inputs": "another"})]) + "\n")
    (difference,) = compare(whole, other)
    assert difference == f"inputs of step 8: {row['inputs']} and another"

    path, _ = newest_whole(Path(inside["run"]) / "checkpoints")
    assert path is not None
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)
    assert any("model.safetensors" in text for text in compare(whole, Path(inside["run"])))


def test_a_run_is_killed_only_when_there_is_a_checkpoint_to_resume_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_at_the_kill: list[bool] = []
    monkeypatch.setattr(
        os, "kill", lambda pid, sent: whole_at_the_kill.append(newest_whole(tmp_path / "checkpoints")[0] is not None)
    )
    killer = Killer(tmp_path, "step:5")
    killer.logged(4)
    assert whole_at_the_kill == []
    slow_disk = threading.Timer(0.2, _checkpoint, [tmp_path / "checkpoints" / "step=00000003"])
    slow_disk.start()
    killer.logged(5)
    slow_disk.join()
    assert whole_at_the_kill == [True]


def _checkpoint(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps({"files": {}, "score": None}))


def test_a_run_that_fails_by_itself_is_no_proof(tmp_path: Path) -> None:
    config = composed(tmp_path, "optimizer=adamw", "optimizer.lr=1e20", "trainer.clip_norm=null").config
    with pytest.raises(RunError, match=r"ended with exit code \d: .*RunError: step \d+"):
        verify_resume(config, argv=[], steps=8, say=lambda line: None)


def test_only_length_and_intervals_are_shortened(tmp_path: Path) -> None:
    config = composed(tmp_path, "logger=tensorboard", "trainer.keep_best=3").config
    short = shortened(config, 12)
    changed = {key for key in config if config[key] != short[key]}
    assert changed == {"experiment", "trainer", "logger"}
    trainer = {
        key: short["trainer"][key] for key in short["trainer"] if short["trainer"][key] != config["trainer"][key]
    }
    assert trainer == {"max": "12 steps", "validate_every": "12 steps", "checkpoint_every": "3 steps"}
    assert config["trainer"]["max"] == "8 steps"


@pytest.mark.slow
def test_a_mixture_in_batches_by_tokens_is_proved(tmp_path: Path) -> None:
    other = tmp_path / "more.jsonl"
    other.write_text("".join(json.dumps({"text": f"{n} " * (1 + n % 40)}) + "\n" for n in range(90)))
    parts = [f"scenes:{{kind:jsonl,path:{scenes(tmp_path)}}}", f"more:{{kind:jsonl,path:{other}}}"]
    data = ["data=mixture", f"data.parts={{{','.join(parts)}}}", "data.weights={scenes:0.3,more:0.7}"]
    batch = ["batch=budget", "batch.tokens=96", "batch.micro_batches=2", "batch.length=32", "batch.window=64"]
    small = [override for override in SMALL if not override.startswith("batch.")]
    config = compose("train", [*small, *data, *batch, f"outputs={tmp_path / 'outputs'}"]).check().config
    found = verify_resume(config, argv=["mlplatform", "verify-resume"], steps=8, say=lambda line: None)
    assert found["equal"] is True
    whole = Path(found["undisturbed"])
    assert record.read(whole)["data"]["weights"] == {"scenes": 0.3, "more": 0.7}
    assert len(set(batches_of(whole).values())) == 8


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_that_write_their_parts_are_proved(tmp_path: Path) -> None:
    config = composed(tmp_path, "strategy=fsdp", "trainer.devices=2", "optimizer=adamw", "trainer.ema=0.9").config
    found = verify_resume(config, argv=["mlplatform", "verify-resume"], steps=8, say=lambda line: None)
    assert found["equal"] is True
    ends = [newest_whole(Path(run) / "checkpoints")[0] for run in (found["undisturbed"], found["killed after a step"]["run"])]
    names = [{path.name for path in end.glob("*.safetensors")} for end in ends if end is not None]
    assert names[0] == names[1] == {f"{s}-0000{n}-of-00002.safetensors" for s in ("model", "optimizer", "ema") for n in (1, 2)}
    assert ends[0] is not None
    part = ends[0] / "optimizer-00002-of-00002.safetensors"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    assert [text for text in compare(Path(found["undisturbed"]), Path(found["killed after a step"]["run"])) if part.name in text]
