"""A run goes on under another strategy and with another number of processes, exactly."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import equivalence
import pytest
import torch
from equivalence import Cell, curve, go, machines, together
from training_runs import in_processes

from mlplatform.training.shards import Stored

pytestmark = pytest.mark.distributed

STAGES: dict[str, list[tuple[dict[str, Any], int]]] = {
    "afmoe": [
        ({"kind": "fsdp"}, 2),
        ({"kind": "tp"}, 2),
        ({"kind": "single"}, 1),
        ({"kind": "zero3", "keep": 100}, 2),
        ({"kind": "fsdp_tp", "tensor": 2}, 4),
        ({"kind": "zero1"}, 2),
    ],
    "clip": [({"kind": "zero1"}, 2), ({"kind": "zero3", "keep": 100}, 2), ({"kind": "single"}, 1)],  # with a scalar
    "llama": [
        ({"kind": "zero3", "keep": 100}, 2),
        ({"kind": "fsdp"}, 2),
        ({"kind": "zero3", "keep": 100}, 2),
        ({"kind": "single"}, 1),
    ],
}
ADAPTER: dict[str, dict[str, Any]] = {"llama": {"kind": "lora", "rank": 4, "targets": ["*.attention"], "dora": True}}
EACH = 3


def stage(folder: Path, cell: Cell) -> None:
    """Go on with a cell, as one rank: write down at once what was loaded, then train."""
    make = equivalence.make

    def saving(*arguments: Any) -> Any:
        made = make(*arguments)
        if cell.resume:
            loaded = folder / "loaded" / Path(cell.resume).name
            made.task.on_train_start = lambda: made.task.trainer.save_checkpoint(loaded)
        return made

    equivalence.make = saving
    logged, result = go(folder, cell, folder / f"rows{os.environ.get('RANK', 0)}")
    if os.environ.get("RANK", "0") == "0":
        (folder / "said.json").write_text(json.dumps({"rows": logged, "checkpoint": str(result.checkpoint)}))


def same_files(one: Path, other: Path) -> None:
    for name in ("model", "optimizer", "ema"):
        first, second = (dict(Stored(folder, name)) for folder in (one, other))
        assert first.keys() == second.keys(), name
        for key, tensor in first.items():
            assert torch.equal(tensor, second[key]), (name, key)
    states = [json.loads((folder / "state.json").read_text()) for folder in (one, other)]
    for key in states[0].keys() - {"rng", "loops", "callbacks"}:
        assert states[0][key] == states[1][key], key
    if len(states[0]["rng"]) == len(states[1]["rng"]):
        assert states[0]["rng"] == states[1]["rng"]


@pytest.mark.parametrize("model", STAGES)
def test_a_run_moves_from_strategy_to_strategy(model: str, tmp_path: Path) -> None:
    steps, trainer = EACH * len(STAGES[model]), {"validate_every": None, "ema": 0.9}
    options: dict[str, Any] = {"steps": steps, "trainer": trainer, "adapter": ADAPTER.get(model)}
    [whole] = together(tmp_path / "whole", 1, [Cell(model, {"kind": "single"}, **options)])
    checkpoint, losses = "", []
    for number, (strategy, world) in enumerate(STAGES[model], start=1):
        folder = tmp_path / str(number)
        folder.mkdir()
        cell = Cell(model, strategy, resume=checkpoint, stop=number * EACH, **options)
        codes = in_processes(stage, [(folder, cell)] * world, machines(world) if world > 1 else [{}], 400)
        assert codes == [0] * world, strategy
        said = json.loads((folder / "said.json").read_text())
        losses += curve(said)
        if checkpoint:
            same_files(folder / "loaded" / Path(checkpoint).name, Path(checkpoint))
        checkpoint = said["checkpoint"]
    assert losses == pytest.approx(curve(whole), rel=1e-5)
    last, straight = Path(checkpoint), Stored(Path(whole["checkpoint"]), "ema")
    assert distance(Stored(last, "ema"), straight) < 1e-3 * distance(Stored(last, "model"), straight)


def distance(one: Stored, other: Stored) -> float:
    """Return how far two sets of weights are apart, but for biases of keys: their gradient is rounding alone."""
    names = [name for name in other if not name.endswith(".k.bias")]
    return sum((one[name] - other[name]).square().sum().item() for name in names) ** 0.5
