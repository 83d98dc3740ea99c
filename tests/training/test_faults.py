"""Losses that are not finite: the run stops, passes the step by, or goes back; and spikes are told."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import Record, Run, in_processes, ranks

from mlplatform.errors import RunError
from mlplatform.training.checkpoints import newest_whole
from mlplatform.training.faults import Fault, Faults, RollBack, Skip, Stop
from mlplatform.training.saving import FolderIO

BAD = 7


class Poisoned(Run):
    """A run whose loss is not a number at some steps, on one rank alone where there are several."""

    def __init__(self, folder: Path, *steps: int, rank: int = 0, **options: Any) -> None:
        super().__init__(folder, **options)
        self.at, self.faults, self.seen = steps, [], []
        original = self.task.learned
        mine = int(os.environ.get("RANK", 0)) == rank

        def learned(batch: Any) -> Any:
            out = original(batch)
            step = self.task.trainer.global_step + 1
            if step in self.at and mine:
                self.seen.append(step)
                out.loss_sum = out.loss_sum * math.nan
            return out

        self.task.learned = learned  # type: ignore[method-assign]

    def go(self, *arguments: Any, **more: Any) -> Any:
        return super().go(*arguments, **{"noted": self.faults.append, **more})


def trainer(kind: str, **more: Any) -> dict[str, Any]:
    return {"trainer": {"on_bad_loss": {"kind": kind}, "validate_every": None, **more}}


def finite(run: Run) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in run.weights().values())


class Weights(Record):
    """A recorder that keeps the weights after each step as well."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run, self.after = run, {}

    def log(self, step: int, values: dict[str, float]) -> None:
        super().log(step, values)
        self.after[step] = {**self.run.weights(), "moment": self._moment()}

    def _moment(self) -> torch.Tensor:
        optimizer: Any = self.run.task.optimizers()
        return torch.cat([state["exp_avg"].flatten().clone() for state in optimizer.state.values()])


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed", "fp16-mixed"])
def test_a_skipped_step_changes_nothing_and_is_recorded(tmp_path: Path, precision: str) -> None:
    run = Poisoned(tmp_path, BAD, **trainer("skip", precision=precision, ema=0.9))
    weights = Weights(run)
    result = run.go(recorder=weights)
    assert (result.status, result.steps) == ("finished", 12)
    assert run.seen == [BAD, BAD]  # both micro-batches
    assert equal(weights.after[BAD - 1], weights.after[BAD])
    assert not equal(weights.after[BAD], weights.after[BAD + 1])
    assert finite(run)
    assert run.faults == [Fault(BAD, "skipped", "the loss is nan: the step is skipped")]
    assert weights.curve("faults/skipped") == {BAD: 1.0}
    assert list(weights.curve("train/loss")) == [step for step in range(1, 13) if step != BAD]
    assert f"step={BAD} the loss is nan: the step is skipped" in run.out.getvalue()
    averaged = FolderIO().load_checkpoint(tmp_path / "checkpoints/step=00000012")
    assert all(torch.isfinite(tensor).all() for tensor in averaged["ema"].values())
    assert averaged["faults"]["counts"] == {"skipped": 1}


def test_too_many_skipped_in_a_row_end_the_run(tmp_path: Path) -> None:
    options = {"trainer": {"on_bad_loss": {"kind": "skip", "most": 2}, "validate_every": None}}
    spread = Poisoned(tmp_path / "spread", 5, 6, 9, 10, **options)
    assert spread.go().status == "finished"
    row = Poisoned(tmp_path / "row", 5, 6, 7, **options)
    with pytest.raises(RunError, match=r"step 7: the loss is nan, after 2 steps in a row that were skipped; lower opt"):
        row.go()
    assert finite(row)
    assert newest_whole(tmp_path / "row/checkpoints")[0] == tmp_path / "row/checkpoints/step=00000004"


def test_it_goes_back_to_the_last_checkpoint_and_past_the_data(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", **trainer("stop"))
    kept = Weights(whole)
    whole.go(recorder=kept)
    run = Poisoned(tmp_path / "run", BAD, **trainer("roll_back", ema=0.9))
    weights = Weights(run)
    assert run.go(recorder=weights).status == "finished"
    assert equal(weights.after[6], kept.after[6])
    assert run.faults == [Fault(BAD, "rolled_back", "the loss is nan: back to the weights of step=00000004")]
    # What the step that follows starts from: the weights and moments of step 4, and the batch of step 8.
    again = Run(tmp_path / "again", **trainer("stop", ema=0.9))
    state = FolderIO().load_checkpoint(tmp_path / "run/checkpoints/step=00000008")
    assert state["clock"]["steps"] == 8
    assert state["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["consumed"] == 8 * 4
    before = FolderIO().load_checkpoint(tmp_path / "whole/checkpoints/step=00000008")
    ours = {name.removeprefix("model."): tensor for name, tensor in state["state_dict"].items()}
    moved = [(tensor - kept.after[4][name]).abs().max() for name, tensor in ours.items()]
    assert 0 < max(moved) <= 1.1e-2  # one step of AdamW at lr 1e-2 away from step 4
    assert not all(torch.equal(t, before["state_dict"][n]) for n, t in state["state_dict"].items())
    steps = {float(entry["step"]) for entry in state["optimizer_states"][0]["state"].values()}
    assert steps == {5.0}
    # and it resumes exactly from there
    again.go(tmp_path / "run/checkpoints/step=00000008")
    assert again.record.exact() == [row for row in weights.exact() if row[0] > 8]


def test_going_back_again_and_again_ends(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"step 11: the loss is nan, after going back to step=00000004 3 times; lower"):
        Poisoned(tmp_path / "often", 6, 7, 8, 11, **trainer("roll_back")).go()  # the bad step 8 is not saved
    with pytest.raises(RunError, match=r"step 2: the loss is nan, and there is no checkpoint to go back to"):
        Poisoned(tmp_path / "early", 2, **trainer("roll_back")).go()


def _two(folder: Path, kind: str) -> None:
    rank = int(os.environ["RANK"])
    run = Poisoned(folder / f"rank{rank}", BAD, rank=1, strategy={"kind": "ddp"}, **trainer(kind, devices=2))
    result = run.go(folder=folder / "checkpoints")
    torch.save({"faults": run.faults, "weights": run.weights(), "steps": result.steps}, folder / f"end{rank}.pt")


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["skip", "roll_back"])
def test_all_ranks_answer_what_one_of_them_met(tmp_path: Path, kind: str) -> None:
    assert in_processes(_two, [(tmp_path, kind)] * 2, ranks(2)) == [0, 0]
    one, two = (torch.load(tmp_path / f"end{rank}.pt", weights_only=False) for rank in (0, 1))
    assert (one["steps"], two["steps"]) == (12, 12)
    assert [fault.kind for fault in one["faults"]] == [{"skip": "skipped", "roll_back": "rolled_back"}[kind]]
    assert two["faults"] == []  # rank 0 tells
    assert equal(one["weights"], two["weights"])
    assert all(torch.isfinite(tensor).all() for tensor in one["weights"].values())


# ---- losses out of the ordinary ----


def faults(*losses: float, policy: Any = None) -> list[Fault]:
    told: list[Fault] = []
    watch = Faults(policy or Stop(), lambda fault, count: told.append(fault))
    for step, loss in enumerate(losses, 1):
        assert watch.settle(step, loss, lambda: None)
    return told


def falling(count: int, seed: int = 0) -> list[float]:
    """A loss that falls from 5 to 3, with noise."""
    noise = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.05
    return [3 + 2 * math.exp(-i / 60) + float(n) for i, n in enumerate(noise)]


@pytest.mark.parametrize("seed", range(5))
def test_an_ordinary_run_has_no_spikes(seed: int) -> None:
    assert faults(*falling(600, seed)) == []


def test_a_spike_is_told_once_and_does_not_hide_the_next() -> None:
    losses = falling(200)
    losses[150], losses[152], losses[10] = 6.0, 7.5, 20.0
    told = faults(*losses)
    assert [(fault.step, fault.kind) for fault in told] == [(151, "spikes"), (153, "spikes")]
    assert told[0].what.startswith("the loss spikes: 6.0000 is ")
    assert told[0].what.endswith(" of the last 64 steps")


def test_a_loss_that_stands_still_makes_no_spike_of_a_hair() -> None:
    assert faults(*[2.0] * 100, 2.01) == []
    assert len(faults(*[2.0] * 100, 2.1)) == 1


@pytest.mark.parametrize("seed", range(5))
def test_losses_near_nothing_differ_by_factors(seed: int) -> None:
    drawn = torch.randn(600, generator=torch.Generator().manual_seed(seed))
    small = [1e-3 * math.exp(1.2 * float(z)) for z in drawn]  # a classifier that is nearly always right
    assert faults(*small) == []
    assert [fault.step for fault in faults(*small, 100.0)] == [601]


def test_counts_and_losses_go_on_after_a_resume() -> None:
    told: list[tuple[Fault, int]] = []
    watch = Faults(Skip(), lambda fault, count: told.append((fault, count)))
    for step, loss in enumerate([*falling(60), 9.0], 1):
        watch.settle(step, loss, lambda: None)
    again = Faults(RollBack(), lambda fault, count: told.append((fault, count)))
    again.load_state_dict(watch.state_dict())
    again.settle(62, 9.0, lambda: None)
    assert [count for _, count in told] == [1, 2]
