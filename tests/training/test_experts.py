"""Training a mixture of experts: its losses reach the gradient, its load the metrics, its correction the router."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import Run

from mlplatform.blocks.moe import mixtures


def experts(router: dict[str, Any], **fields: Any) -> dict[str, Any]:
    mlp = {"kind": "moe", "experts": 4, "top_k": 1, "width": 16, "router": router, **fields}
    return {"trunk": {"layer": {"mlp": mlp}}}


def skewed(run: Run) -> Run:
    """Make the first expert of every layer the favourite at the start."""
    for _, moe in mixtures(run.task.model):
        with torch.no_grad():
            if getattr(moe.router, "correction", None) is not None:
                moe.router.correction[0] = 0.2
            else:
                moe.router.weight.zero_()  # of equals the first is taken
    return run


@pytest.mark.parametrize(
    "more",
    [
        {"router": {"kind": "softmax_router"}, "balance_weight": 1.0},
        {"router": {"kind": "sigmoid_router", "correction_rate": 0.02}},
    ],
    ids=["balance-loss", "correction"],
)
def test_the_load_evens_out(more: dict[str, Any], tmp_path: Path) -> None:
    run = skewed(Run(tmp_path, model=experts(**more), batch={"sequences": 8}))
    run.go()
    busiest = run.record.curve("experts/trunk.layers.0.mlp/busiest")
    assert set(busiest) == set(range(1, 13))
    assert busiest[1] == 4, "all tokens to one of four"
    assert min(busiest[step] for step in (10, 11, 12)) < 2.5
    assert all(0 <= v <= 1 for v in run.record.curve("experts/trunk.layers.1.mlp/idlest").values())


def test_the_extra_loss_is_trained_on_and_not_reported(tmp_path: Path) -> None:
    plain = Run(tmp_path / "plain", model=experts({"kind": "softmax_router"}))
    heavy = Run(tmp_path / "heavy", model=experts({"kind": "softmax_router"}, balance_weight=5.0))
    for run in (plain, heavy):
        run.go()
    losses = [run.record.curve("train/loss") for run in (plain, heavy)]
    assert losses[0][1] == losses[1][1], "the loss of the first step is over tokens alone"
    assert losses[0][12] != losses[1][12]


def test_a_correction_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = experts({"kind": "sigmoid_router", "correction_rate": 0.01})
    whole = Run(tmp_path / "whole", model=model)
    whole.go()
    first = Run(tmp_path / "parts", model=model, trainer={"max": "12 steps"})
    checkpoint = tmp_path / "whole" / "checkpoints" / "step=00000008"
    first.go(resume_from=checkpoint)
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, first.weights()[name]), name
    assert any(m.router.correction.abs().sum() > 0 for _, m in mixtures(whole.task.model))
