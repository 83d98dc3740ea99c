"""Whole runs: resume is exact, stopping is orderly, and what is reported is what happened."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import Run

from mlplatform.errors import CheckpointError, DataError, RunError
from mlplatform.training.checkpoints import checkpoints, newest_whole
from mlplatform.training.engine import Result
from mlplatform.training.saving import FolderIO

SGD = {"_target_": "torch.optim.SGD", "lr": 1.0}


def same_weights(one: Run, other: Run) -> bool:
    theirs = other.weights()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.weights().items())


def contents(checkpoint: Path) -> dict[str, Any]:
    """Return all a checkpoint says, but how long the run took."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}
    found["state.json"] = json.loads((checkpoint / "state.json").read_text())
    found["state.json"]["clock"].pop("seconds")
    return found


class At:
    """A recorder that does something when the metrics of a step arrive."""

    def __init__(self, run: Run, step: int, action: Any) -> None:
        self.run, self.step, self.action = run, step, action

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.record.log(step, values)
        if step == self.step and "train/loss" in values:
            self.action()


# ---- resume ----


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("optimizer", [{"kind": "adamw"}, {"kind": "muon"}, {"kind": "adafactor"}, SGD])
def test_resumed_from_any_checkpoint_it_ends_the_same(
    tmp_path: Path, optimizer: dict[str, Any], ema: float | None
) -> None:
    options: dict[str, Any] = {"optimizer": optimizer, "trainer": {"ema": ema, "keep": 5, "log_every": "3 steps"}}
    run = Run(tmp_path / "whole", **options)
    run.go()
    last = contents(tmp_path / "whole/checkpoints/step=00000012")
    assert last["state.json"]["clock"] == {"steps": 12, "tokens": 12 * 4 * 32}
    assert ("ema.safetensors" in last) == (ema is not None)
    for step in (4, 8):
        again = Run(tmp_path / f"from{step}", **options)
        again.go(tmp_path / f"whole/checkpoints/step={step:08d}")
        # A window of three steps reaches across the checkpoint: its mean comes out the same.
        assert again.record.exact() == [row for row in run.record.exact() if row[0] > step]
        assert same_weights(run, again)
        assert contents(tmp_path / f"from{step}/checkpoints/step=00000012") == last


def test_dropout_makes_the_random_state_matter(tmp_path: Path) -> None:
    """The control: with another random state the same resume ends elsewhere."""
    run = Run(tmp_path / "whole")
    run.go()
    checkpoint = tmp_path / "whole/checkpoints/step=00000008"
    state = FolderIO().load_checkpoint(checkpoint)
    torch.manual_seed(0)
    from mlplatform.training.rng import capture

    state["rng"] = [capture()]
    changed = tmp_path / "changed/step=00000008"
    FolderIO().save_checkpoint(state, changed)
    again = Run(tmp_path / "again")
    again.go(changed)
    assert not same_weights(run, again)


def test_across_epochs_and_with_workers(tmp_path: Path) -> None:
    small: dict[str, Any] = {
        "batch": {"sequences": 64, "micro": 32, "length": 64},
        "trainer": {"max": "2 epochs", "keep": 9},
    }
    run = Run(tmp_path / "whole", **small)
    steps = math.ceil(2 * run.data.samples_per_epoch / 64)
    assert run.go().steps == steps
    assert 4 < steps < 12
    again = Run(tmp_path / "again", **{**small, "batch": {**small["batch"], "workers": 1}})
    again.go(tmp_path / "whole/checkpoints/step=00000004")
    assert again.record.exact() == [row for row in run.record.exact() if row[0] > 4]
    assert same_weights(run, again)


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    run = Run(tmp_path)
    first = run.go()
    again = Run(tmp_path)
    assert again.go(first.checkpoint) == Result("finished", 12, first.tokens, first.seconds, first.best, None)
    assert again.record.rows == []
    assert same_weights(run, again)


def test_a_longer_run_goes_on(tmp_path: Path) -> None:
    last = Run(tmp_path).go().checkpoint
    longer = Run(tmp_path, trainer={"max": "16 steps"})
    assert longer.go(last).steps == 16


def test_the_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    last = Run(tmp_path / "one").go().checkpoint
    with pytest.raises(
        CheckpointError, match=r"of another model: model\.trunk\.layers\.0\.mlp\.\w+\.weight is \(48, 32\)"
    ):
        Run(tmp_path / "two", model={"trunk": {"layer": {"mlp": {"width": 64}}}}).go(last)
    with pytest.raises(CheckpointError, match=r"of another model: model\.trunk\.layers\.2\.\S+ is missing"):
        Run(tmp_path / "three", model={"trunk": {"depth": 3}}).go(last)


# ---- lengths ----


def test_tokens_end_a_run_and_time_its_validations(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        trainer={
            "max": "1K tokens",  # 128 a step
            "log_every": "300 tokens",
            "validate_every": "50%",
            "checkpoint_every": None,
        },
        schedule={"warmup": "256 tokens"},
    )
    result = run.go()
    assert (result.status, result.steps, result.tokens) == ("finished", 8, 1024)
    assert list(run.record.curve("train/loss")) == [3, 5, 8]
    assert list(run.record.curve("validation/loss")) == [4, 8]
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step=00000008"]


def test_time_ends_a_run(tmp_path: Path) -> None:
    clock = [0.0]

    def now() -> float:
        clock[0] += 0.5
        return clock[0]

    run = Run(tmp_path, trainer={"max": "20 s", "checkpoint_every": "10 s", "validate_every": None})
    result = run.go(now=now)
    assert result.status == "finished"
    assert 20 <= result.seconds < 22
    assert len(checkpoints(tmp_path / "checkpoints")) == 2


def test_the_reported_metrics(tmp_path: Path) -> None:
    run = Run(tmp_path)
    result = run.go()
    steps = dict(run.record.rows[:1])[1]
    assert set(steps) == {
        "train/loss",
        "train/grad_norm",
        "train/lr",
        "train/tokens",
        "perf/tokens_per_second",
        "perf/data_wait",
        "perf/memory_gb",
    }  # no share of a peak on a CPU
    assert run.record.curve("train/tokens") == {step: step * 128.0 for step in range(1, 13)}
    assert run.record.curve("train/lr")[1] == pytest.approx(1e-2 / 3)
    assert run.record.curve("train/lr")[4] == pytest.approx(1e-2)
    measured = run.record.curve("validation/loss")
    assert result.best == (12, "validation/loss", measured[12])
    assert run.record.curve("validation/perplexity")[12] == pytest.approx(math.exp(measured[12]))
    per_token = measured[12] / math.log(2) / run.record.curve("validation/bits_per_byte")[12]
    assert per_token == pytest.approx(run.data.material.bytes_per_token, rel=0.1)  # the splits differ a little
    lines = run.out.getvalue().splitlines()
    assert lines[0].startswith("step=1 loss=")
    assert sum(line.startswith("step=12 validation: loss=") for line in lines) == 1


# ---- stopping ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_step_and_the_rest_is_the_same(tmp_path: Path, number: signal.Signals) -> None:
    whole = Run(tmp_path / "whole")
    whole.go()
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    cut = Run(tmp_path / "cut")
    # While step 7 logs, the signal comes: step 8 is the last.
    result = cut.go(recorder=At(cut, 7, lambda: os.kill(os.getpid(), number)))
    assert result.status == "preempted"
    assert result.steps == 8
    assert f"{number.name}: stopping after step 8" in cut.out.getvalue()
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before
    again = Run(tmp_path / "cut")
    assert again.go(newest_whole(tmp_path / "cut/checkpoints")[0]).status == "finished"
    assert cut.record.exact() + again.record.exact() == whole.record.exact()
    assert same_weights(whole, again)


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)  # of a shell's background job it is another
    run = Run(tmp_path)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunError, match=r"a second time: stopped at once.*the last good checkpoint is .*step=00000004"):
        run.go(recorder=At(run, 6, interrupt))
    assert newest_whole(tmp_path / "checkpoints") == (tmp_path / "checkpoints/step=00000004", [])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_loss_that_is_not_finite_stops_the_run_and_nothing_bad_is_saved(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def poison() -> None:
        run.task.model.trunk.layers[1].mlp.down.weight.data[0, 0] = math.nan

    with pytest.raises(RunError, match=r"step 7: the loss is nan; .*last good checkpoint is .*step=00000004") as caught:
        run.go(recorder=At(run, 6, poison))
    assert "\n" not in str(caught.value)
    assert list(run.record.curve("train/loss")) == [1, 2, 3, 4, 5, 6]
    assert all(
        torch.isfinite(t).all()
        for t in FolderIO().load_checkpoint(run.folder / "checkpoints/step=00000004")["state_dict"].values()
    )


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    run = Run(tmp_path)
    weight = run.task.model.trunk.layers[0].mlp.up.weight
    weight.register_hook(lambda gradient: gradient * math.inf if len(run.record.rows) > 2 else gradient)
    with pytest.raises(RunError, match=r"step 4: the norm of the gradient is nan"):
        run.go()
    assert all(torch.isfinite(tensor).all() for tensor in run.weights().values())


def test_too_large_a_rate_is_stopped_too(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"step \d+: the (loss|norm of the gradient) is .*lower optimizer\.lr"):
        Run(tmp_path, optimizer={"lr": 1e30, "weight_decay": 0.0}, trainer={"clip_norm": None}).go()


def test_a_second_run_in_the_folder_of_a_first_is_refused(tmp_path: Path) -> None:
    Run(tmp_path).go()
    with pytest.raises(RunError, match=r"holds the checkpoints of a run, up to step=00000012; resume it"):
        Run(tmp_path).go()


def test_a_step_without_a_target_is_an_error(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.data.collator.__class__ = type("Blind", (type(run.data.collator),), {"__call__": _without_targets})
    with pytest.raises(DataError, match="step 1: no token of its batch is a target"):
        run.go()


def _without_targets(self: Any, rows: Any) -> Any:
    batch = type(self).__mro__[1].__call__(self, rows)
    batch["labels"][:] = -100
    return batch


# ---- options ----


def test_clipping_bounds_the_update_and_reports_the_norm_before(tmp_path: Path) -> None:
    one = {"trainer": {"max": "1 steps", "clip_norm": 0.25}, "optimizer": SGD, "schedule": {"kind": "constant"}}
    run = Run(tmp_path, **one)
    before = run.weights()
    run.go()
    moved = torch.cat([(tensor - before[name]).flatten() for name, tensor in run.weights().items()]).norm()
    assert run.record.curve("train/grad_norm")[1] > 0.5
    assert moved.item() == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("again", ["full", "selective", ["trunk.layers.0"]])
def test_recomputed_activations_change_no_bit(tmp_path: Path, again: Any) -> None:
    plain = Run(tmp_path / "plain")
    plain.go()
    recomputed = Run(tmp_path / "recomputed", trainer={"activation_checkpointing": again})
    calls = []
    recomputed.task.model.trunk.layers[0].register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    recomputed.go()
    assert calls.count(True) > 12 * 2  # each micro-batch's forward pass, and again in its backward pass
    assert recomputed.record.exact() == plain.record.exact()
    assert same_weights(plain, recomputed)


def test_a_run_that_saves_and_validates_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, trainer={"validate_every": None, "log_every": None, "checkpoint_every": None})
    result = run.go(folder=None)
    assert result.checkpoint is None
    assert not (tmp_path / "checkpoints").exists()
    assert list(run.record.curve("train/loss")) == [12]  # the last step is always logged
    assert run.record.curve("validation/loss") == {}


def test_more_files_go_into_each_checkpoint(tmp_path: Path) -> None:
    Run(tmp_path).go(extra=lambda folder: (folder / "config.json").write_text("{}") and None)
    assert (tmp_path / "checkpoints/step=00000012/config.json").read_text() == "{}"


@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler has warnings of its own
def test_compiled_layers_train_alike(tmp_path: Path) -> None:
    plain = Run(tmp_path / "plain", trainer={"max": "4 steps"}, model={"trunk": {"layer": {"dropout": 0.0}}})
    plain.go()
    compiled = Run(
        tmp_path / "compiled",
        trainer={"max": "4 steps", "compile": True},
        model={"trunk": {"layer": {"dropout": 0.0}}},
    )
    compiled.go()
    assert compiled.weights().keys() == plain.weights().keys()
    for step, loss in plain.record.curve("train/loss").items():
        assert compiled.record.curve("train/loss")[step] == pytest.approx(loss, rel=1e-4)
