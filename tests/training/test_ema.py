"""Averaged weights: the closed form, their use in validation, and their return."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import Run

from mlplatform.errors import CheckpointError
from mlplatform.models.share import Share
from mlplatform.training.ema import AveragedWeights

EMA = {"ema": 0.5, "validate_every": "12 steps"}


def module(*values: float, dtype: torch.dtype = torch.float32) -> Any:
    inner = torch.nn.Linear(len(values), 1, bias=False)
    inner.weight.data = torch.tensor([values], dtype=dtype)
    return SimpleNamespace(model=inner, share=Share())


@pytest.mark.parametrize(("decay", "keeps"), [(0.2, [2 / 11, 0.2, 0.2]), (0.99, [2 / 11, 3 / 12, 4 / 13])])
def test_is_the_weighted_mean_of_what_the_weights_were(decay: float, keeps: list[float]) -> None:
    holder, average = module(1.0, -2.0), AveragedWeights(decay)
    average.on_train_start(None, holder)  # type: ignore[arg-type]
    expected = torch.tensor([[1.0, -2.0]])
    for step, (keep, factor) in enumerate(zip(keeps, (3.0, 5.0, -7.0), strict=True), start=1):
        holder.model.weight.data = torch.tensor([[1.0, 2.0]]) * factor
        average.update(holder, step)
        expected = keep * expected + (1 - keep) * holder.model.weight.data
    torch.testing.assert_close(average.average["weight"], expected)


def test_stays_in_fp32_over_bf16_weights() -> None:
    holder, average = module(1.0, dtype=torch.bfloat16), AveragedWeights(0.999)
    average.on_train_start(None, holder)  # type: ignore[arg-type]
    holder.model.weight.data = torch.tensor([[1.0078125]], dtype=torch.bfloat16)
    average.update(holder, 100_000)  # moves by less than bf16 can say
    assert average.average["weight"].item() == pytest.approx(1.0000078, abs=1e-7)
    with average.applied(holder):
        assert holder.model.weight.dtype == torch.bfloat16


def test_takes_the_place_of_the_weights_for_a_while() -> None:
    holder, average = module(1.0), AveragedWeights(0.5)
    average.on_train_start(None, holder)  # type: ignore[arg-type]
    own = holder.model.weight.data = torch.tensor([[9.0]])
    with contextlib.suppress(ZeroDivisionError), average.applied(holder):
        assert holder.model.weight.item() == 1.0
        raise ZeroDivisionError
    assert holder.model.weight.item() == 9.0
    assert holder.model.weight.data_ptr() == own.data_ptr()  # the very tensor the optimizer holds


def test_validation_uses_it_and_training_does_not(tmp_path: Path) -> None:
    plain, averaged = Run(tmp_path / "plain"), Run(tmp_path / "averaged", trainer=EMA)
    plain.go()
    averaged.go()
    assert averaged.record.curve("train/loss") == plain.record.curve("train/loss")
    mean = load_file(tmp_path / "averaged/checkpoints/step=00000012/ema.safetensors")
    assert averaged.record.curve("validation/loss")[12] != plain.record.curve("validation/loss")[12]
    check = Run(tmp_path / "check", trainer={"max": "1 steps"}, optimizer={"lr": 1e-30, "weight_decay": 0.0})
    check.task.model.load_state_dict(mean)
    check.go()
    found = check.record.curve("validation/loss")[1]
    assert found == pytest.approx(averaged.record.curve("validation/loss")[12], rel=1e-6)


def test_a_checkpoint_without_it_is_refused(tmp_path: Path) -> None:
    Run(tmp_path).go()
    last = tmp_path / "checkpoints/step=00000012"
    with pytest.raises(CheckpointError, match=r"no averaged weights; it was written with trainer\.ema=null"):
        Run(tmp_path, trainer=EMA).go(last)
