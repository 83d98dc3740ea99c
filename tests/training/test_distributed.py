"""Two ranks do what one does: the same gradient, the same validation, and an exact resume, also by another number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import Run, in_processes, ranks

pytestmark = pytest.mark.distributed

STILL: dict[str, Any] = {"trunk": {"layer": {"dropout": 0.0}}}
STEP: dict[str, Any] = {
    "model": STILL,
    "trainer": {"max": "1 steps", "clip_norm": None},
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 1.0},
    "schedule": {"kind": "constant"},
}


def _train(folder: Path, options: dict[str, Any], resume_from: Path | None, stop_at: int | None = None) -> None:
    """One rank of a run; each writes what it recorded."""
    import os
    import signal

    run = Run(folder / f"rank{os.environ['RANK']}", **options)

    class Recorder:
        def log(self, step: int, values: dict[str, float]) -> None:
            run.record.log(step, values)
            if step == stop_at and "train/loss" in values:
                os.kill(os.getpid(), signal.SIGTERM)

    result = run.go(resume_from, folder=folder / "checkpoints", recorder=Recorder())
    said = {"status": result.status, "steps": result.steps, "rows": run.record.exact(), "best": result.best}
    (run.folder / "said.json").write_text(json.dumps(said))


def two(folder: Path, options: dict[str, Any], resume_from: Path | None = None, stop_at: int | None = None) -> Any:
    """Train with two ranks; return what rank 0 said."""
    options = {**options, "strategy": {"kind": "ddp"}, "trainer": {"devices": 2, **options.get("trainer", {})}}
    codes = in_processes(_train, [(folder, options, resume_from, stop_at)] * 2, ranks(2))
    assert codes == [0, 0]
    said = [json.loads((folder / f"rank{rank}/said.json").read_text()) for rank in (0, 1)]
    assert said[1]["rows"] == []  # rank 0 alone records
    assert said[0]["steps"] == said[1]["steps"]
    assert said[0]["status"] == said[1]["status"]
    return said[0]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoints/step={step:08d}/model.safetensors")


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_two_ranks_take_the_step_of_one(tmp_path: Path, layout: str) -> None:
    options = {**STEP, "batch": {"sequences": 8, "micro": 2, "layout": layout}}  # 2 micro-batches a rank, and 4 alone
    alone = Run(tmp_path / "alone", **options)
    before = alone.weights()
    alone.go()
    said = two(tmp_path / "two", options)
    for name, tensor in weights(tmp_path / "two", 1).items():
        gradient = before[name] - alone.weights()[name]
        largest = gradient.abs().max().item()
        assert largest > 1e-5, name
        torch.testing.assert_close(before[name] - tensor, gradient, rtol=1e-3, atol=1e-4 * largest, msg=name)
    for (step, values), (other, expected) in zip(said["rows"], alone.record.exact(), strict=True):
        assert step == other
        assert values == pytest.approx(expected, rel=1e-5)


def test_two_ranks_resume_exactly_and_a_signal_to_one_stops_both(tmp_path: Path) -> None:
    whole = two(tmp_path / "whole", {"trainer": {"ema": 0.9}})
    cut = two(tmp_path / "cut", {"trainer": {"ema": 0.9}}, stop_at=5)
    assert (cut["status"], cut["steps"]) == ("preempted", 6)
    rest = two(tmp_path / "cut", {"trainer": {"ema": 0.9}}, tmp_path / "cut/checkpoints/step=00000006")
    assert rest["status"] == "finished"
    assert cut["rows"] + rest["rows"] == whole["rows"]
    theirs = weights(tmp_path / "cut", 12)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(tmp_path / "whole", 12).items())


def test_one_rank_goes_on_where_two_stopped(tmp_path: Path) -> None:
    options = {"model": STILL, "batch": {"sequences": 8, "micro": 2}}
    whole = two(tmp_path / "two", options)
    one = Run(tmp_path / "one", **options)
    one.go(tmp_path / "two/checkpoints/step=00000008")
    expected = [row for row in whole["rows"] if row[0] > 8]
    for (step, values), (other, wanted) in zip(one.record.exact(), expected, strict=True):
        assert step == other
        assert values == pytest.approx(wanted, rel=1e-4)
