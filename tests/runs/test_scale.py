"""`mlplatform train strategy=... trainer.devices=2`, from the command line to a resumed run under another strategy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import SMALL, curves, finished, scenes

import mlplatform as mp
from mlplatform.runs import record
from mlplatform.runs.folder import runs_in
from mlplatform.runs.weights import load_run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def mlplatform(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlplatform.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def done(*words: str) -> None:
    """Run a command that succeeds, and in which no library of ours grumbles at the user."""
    said = mlplatform(*words)
    assert said.returncode == 0, said.stderr
    assert "warning" not in (said.stdout + said.stderr).lower(), said.stdout + said.stderr


@pytest.mark.parametrize(
    ("strategy", "devices", "then"),
    [
        ("fsdp", 2, ["strategy.kind=tp", "trainer.devices=auto"]),
        ("zero3", 2, ["strategy.kind=single", "trainer.devices=1"]),
        ("fsdp_tp", 4, ["strategy.kind=fsdp_cp", "trainer.devices=2"]),
    ],
)
def test_trains_with_several_devices_and_goes_on_under_another_strategy(
    tmp_path: Path, strategy: str, devices: int, then: list[str]
) -> None:
    data = ["data=jsonl", f"data.path={scenes(tmp_path)}", "data.validation=0.2", f"outputs={tmp_path / 'outputs'}"]
    small = [*SMALL, *data, "optimizer=adamw", "model.trunk.layer.dropout=0"]
    done("train", *small, f"strategy={strategy}", f"trainer.devices={devices}")
    [folder] = runs_in(tmp_path / "outputs")
    assert (record.read(folder)["status"], record.read(folder)["steps"]) == ("finished", 8)
    assert list((folder / "samples").iterdir())
    done("resume", str(folder), "trainer.max='12 steps'", *then)
    assert record.read(folder)["steps"] == 12
    done("train", *small, "trainer.max='12 steps'", "experiment=alone")
    [other] = [run for run in runs_in(tmp_path / "outputs") if run != folder]
    # The rate's course is over eight steps at first and twelve afterwards; the first step is the same.
    assert curves(folder)[0]["train/loss"] == pytest.approx(curves(other)[0]["train/loss"], rel=1e-5)


def test_an_adapter_trained_in_pieces_is_merged_and_goes_on_in_one_process(tmp_path: Path) -> None:
    base = finished(tmp_path, "trainer.max=2 steps")
    data = ["data=jsonl", f"data.path={scenes(tmp_path)}", "data.validation=0.2", f"outputs={tmp_path / 'outputs'}"]
    adapter = [f"init_from={base}", "adapter=lora", "adapter.dora=true", "adapter.dropout=0.1", "optimizer=adamw"]
    pieces = ["strategy=zero3", "strategy.keep=100", "trainer.devices=2", "trainer.precision=bf16-mixed"]
    done("train", *SMALL, *data, *adapter, *pieces, "trainer.ema=0.9", "optimizer.lr=0.01")
    [run] = [folder for folder in runs_in(tmp_path / "outputs") if folder != base]
    assert list((run / "samples").iterdir())
    done("export", str(run), str(tmp_path / "merged"))
    merged, before = mp.load(tmp_path / "merged").state_dict(), load_run(base).state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, merged[name])}
    assert moved == {f"trunk.layers.0.attention.{name}.weight" for name in "qv"}
    done("resume", str(run), "trainer.max='12 steps'", "strategy.kind=single", "trainer.devices=1")
    assert record.read(run)["steps"] == 12


def test_what_does_not_fit_is_one_line_before_any_process_starts(tmp_path: Path) -> None:
    data = ["data=jsonl", f"data.path={scenes(tmp_path)}", "data.validation=0.2", f"outputs={tmp_path / 'outputs'}"]
    said = mlplatform("train", *SMALL, *data, "strategy=zero2", "trainer.devices=2")
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert "optimizer: muon reads whole matrices" in said.stderr
    assert not (tmp_path / "outputs").exists()
