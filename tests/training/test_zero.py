"""ZeRO's pieces: the average follows the weights that are stepped, and a rank reads no more than it holds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import equivalence
import pytest
import torch
from equivalence import TOWERS, Cell, go, machines
from training_runs import in_processes, ranks

from mlplatform.cli.compose import compose_model
from mlplatform.models import build
from mlplatform.models.start import Drawn, Read, Start, later
from mlplatform.models.trained import frozen_digest
from mlplatform.registry import Spec
from mlplatform.training.sharding import flat
from mlplatform.training.sharding.zero import ZeroShare
from mlplatform.training.shards import Stored
from mlplatform.training.strategies import Place

pytestmark = pytest.mark.distributed

DECAY, STEPS = 0.9, 4
TRAINER = {"ema": DECAY, "precision": "bf16-mixed", "checkpoint_every": "1 steps", "keep": 9, "validate_every": None}
STAGES: dict[str, dict[str, Any]] = {"zero1": {"kind": "zero1"}, "zero3": {"kind": "zero3", "keep": 100}}


def train(folder: Path, names: list[str]) -> None:
    """Train as one rank, then go on for a step; write down how many numbers of each tensor were read."""
    rank, read, sizes = os.environ["RANK"], Stored.read, dict[str, int]()

    def counted(stored: Stored, name: str, *where: Any) -> torch.Tensor:
        found = read(stored, name, *where)
        sizes[name] = max(sizes.get(name, 0), found.numel())
        return found

    for name in names:
        cell = Cell("llama", STAGES[name], TRAINER, steps=STEPS)
        _, result = go(folder / name, cell, folder / f"rows-{name}-{rank}")
        Stored.read = counted  # type: ignore[method-assign,assignment]
        sizes.clear()
        go(folder / name, cell._replace(resume=str(result.checkpoint), steps=STEPS + 1), folder / f"more-{name}-{rank}")
        Stored.read = read  # type: ignore[method-assign]
        (folder / f"{name}-{rank}.json").write_text(json.dumps(sizes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert in_processes(train, [(folder, list(STAGES))] * 2, machines(2), 400) == [0, 0]
    return folder


@pytest.mark.parametrize("name", STAGES)
def test_the_average_is_of_the_weights_in_fp32(trained: Path, name: str) -> None:
    steps = [trained / name / "checkpoints" / f"step={number:08d}" for number in range(1, STEPS + 2)]
    mean = dict(Stored(steps[0], "ema"))
    for number, step in enumerate(steps[1:], start=2):
        keep = min(DECAY, (1 + number) / (10 + number))
        weights, now = Stored(step, "model"), Stored(step, "ema")
        assert now.keys() == mean.keys() == weights.keys()
        for key, before in mean.items():
            mean[key] = keep * before + (1 - keep) * weights[key]
            torch.testing.assert_close(now[key], mean[key], rtol=1e-6, atol=1e-8)
        rounded = {key: (weights[key] - weights[key].bfloat16()).abs().max() for key in mean}
        assert max(rounded.values()) > 1e-4  # the average of what the model computes with would be another


def test_a_rank_reads_the_rows_of_its_piece(trained: Path) -> None:
    stored = Stored(trained / "zero3" / "checkpoints" / f"step={STEPS:08d}", "model").entries
    for rank in range(2):
        sizes = json.loads((trained / f"zero3-{rank}.json").read_text())
        assert {name.partition("/")[0] for name in sizes} >= {"exp_avg", "exp_avg_sq"}
        for key, size in sizes.items():
            shape = stored[key.rpartition("/")[2]].shape
            assert size <= torch.Size(shape).numel() / 2 + torch.Size(shape[1:]).numel(), key
    sizes = json.loads((trained / "zero1-0.json").read_text())
    assert sizes["trunk.input.table.weight"] == equivalence.VOCABULARY * 32  # whole there, as it is held


MADE = {
    "llama": (TOWERS["llama"][0], TOWERS["llama"][3]),  # one matrix is table and head
    "afmoe": (TOWERS["afmoe"][0], TOWERS["afmoe"][3]),
    "clip": ("clip_tiny", []),  # scalars
    "detr": ("detr_tiny", []),  # buffers, another library's network, learned slots
    "wav2vec2": ("wav2vec2_tiny", []),  # a kernel whose length is worked out from its direction
}


def make() -> None:
    """Make models in pieces, drawn and read; compare all of them with what one process makes."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo", verbose=False)
    for name, overrides in MADE.values():
        spec = compose_model(name, overrides).check().config
        expected = build(spec, seed=3)
        starts: list[Start] = [Drawn(3), Read(lambda made=expected: made.state_dict().items(), {})]  # type: ignore[misc]
        for start in starts:
            share: Any = Spec.of({"kind": "zero3"}, "strategy", "strategy").build()
            share = share.share(Place("cpu", 2, int(os.environ["RANK"]), 2))
            model = later(spec, start)
            half_frozen(model)
            share.divide(model)
            same(model, expected, share)
        half_frozen(expected)
        assert frozen_digest(model, share) == frozen_digest(expected)


def half_frozen(model: torch.nn.Module) -> None:
    for number, p in enumerate(model.parameters()):
        p.requires_grad_(number % 2 == 0)


def same(model: torch.nn.Module, expected: torch.nn.Module, share: ZeroShare) -> None:
    own, theirs = model.state_dict(keep_vars=True), expected.state_dict()
    assert own.keys() == theirs.keys()
    for name, tensor in own.items():
        assert torch.equal(share.whole(tensor).view_as(theirs[name]), theirs[name]), name
    for name, p in model.named_parameters():
        assert p.numel() == 0, name
        assert flat.computed(p).values.numel() <= -(-theirs[name].numel() // 2)
    buffers = dict(expected.named_buffers())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_a_model_made_in_pieces_is_that_of_one_process() -> None:
    assert in_processes(make, [()] * 2, ranks(2)) == [0, 0]
