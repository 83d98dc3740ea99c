"""A sharded run writes its checkpoints rank by rank: nothing is gathered, beside training, each element once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import equivalence
import lightning.pytorch as L
import pytest
from equivalence import TOWERS, Cell, go, machines
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import in_processes

from mlplatform.training.shards import HEADER, OFFSETS, WHOLE, Stored

pytestmark = pytest.mark.distributed

# Sizes of which no half is another tensor's whole.
LLAMA = ["trunk.layer.attention.kv_heads=4", "trunk.layer.attention.head_dim=12", "trunk.layer.mlp.width=40"]
AFMOE = ["trunk.layer.attention.kv_heads=4", "trunk.layer.mlp.width=20", "trunk.layer.mlp.shared.width=20"]
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "fsdp": ("llama", {"kind": "fsdp"}, 2),
    "tp": ("llama", {"kind": "tp"}, 2),
    "ep": ("afmoe", {"kind": "ep"}, 2),
    "hybrid": ("llama", {"kind": "fsdp", "replicate": 2}, 4),
    "fsdp_tp": ("llama", {"kind": "fsdp_tp", "tensor": 2}, 4),
}
TRAINER = {"ema": 0.9, "validate_every": None, "checkpoint_every": "2 steps", "keep": 9}


class Made(TorchDispatchMode):
    """Keeps the shapes of all tensors that operations make, collectives among them."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, list | tuple) else [found]:
            if isinstance(one, Tensor) and not isinstance(one, DTensor):
                self.shapes.add(tuple(one.shape))
        return found


@contextmanager
def watched(said: dict[str, Any]) -> Iterator[None]:
    """Look at what is made during saves; gathering fails there."""
    save = L.Trainer.save_checkpoint

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("gathered in a save")

    def looked_at(trainer: L.Trainer, *arguments: Any, **options: Any) -> None:
        kept = DTensor.full_tensor, DTensor.redistribute
        DTensor.full_tensor = DTensor.redistribute = refuse  # type: ignore[method-assign,assignment]
        module: Any = trainer.lightning_module
        divided = {n: p for n, p in module.model.named_parameters() if isinstance(p, DTensor)}
        try:
            with Made() as made:
                save(trainer, *arguments, **options)
        finally:
            DTensor.full_tensor, DTensor.redistribute = kept  # type: ignore[method-assign]
        said["divided"] = sorted(divided)
        said["whole"] = sorted(
            made.shapes & {tuple(p.shape) for p in divided.values() if p.to_local().shape != p.shape}
        )
        said["parts"] = sorted({tuple(p.to_local().shape) for p in divided.values()} - made.shapes)
        said["beside"] = trainer.strategy.checkpoint_io.pending is not None

    L.Trainer.save_checkpoint = looked_at  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        L.Trainer.save_checkpoint = save  # type: ignore[method-assign]


def _train(folder: Path, names: list[str]) -> None:
    equivalence.TOWERS = {  # type: ignore[assignment]
        name: (*TOWERS[name][:3], [*TOWERS[name][3], *more]) for name, more in (("llama", LLAMA), ("afmoe", AFMOE))
    }
    rank = os.environ["RANK"]
    for name in names:
        model, strategy, _ = CASES[name]
        said: dict[str, Any] = {}
        with watched(said):
            _, result = go(folder / name, Cell(model, strategy, TRAINER, steps=4), folder / f"rows-{name}-{rank}")
        (folder / f"{name}-{rank}.json").write_text(json.dumps({**said, "checkpoint": str(result.checkpoint)}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for world in (2, 4):
        names = [name for name, case in CASES.items() if case[2] == world]
        assert in_processes(_train, [(folder, names)] * world, machines(world), 400) == [0] * world
    return folder


@pytest.mark.parametrize("name", CASES)
def test_each_rank_writes_its_part_and_gathers_nothing(trained: Path, name: str) -> None:
    world = CASES[name][2]
    said = [json.loads((trained / f"{name}-{rank}.json").read_text()) for rank in range(world)]
    assert [one["whole"] for one in said] == [[]] * world  # no tensor of a divided weight's whole shape was ever made
    assert said[0]["parts"] == []  # its own parts were: the copies that are written
    assert [one["beside"] for one in said] == [True] * world
    path, divided = Path(said[0]["checkpoint"]), set(said[0]["divided"])
    assert {p.name for p in path.parent.iterdir()} == {"step=00000002", "step=00000004"}
    assert not (path / "model.safetensors").exists()
    for stem in ("model", "optimizer", "ema"):
        held = [pieces(path / f"{stem}-{rank + 1:05d}-of-{world:05d}.safetensors") for rank in range(world)]
        stored, counts = Stored(path, stem), dict.fromkeys(Stored(path, stem), 0)
        for rank, found in enumerate(held):
            for key, (shape, _, whole) in found.items():
                counts[key] += count(shape)
                if key.rpartition("/")[2] in divided and whole:
                    assert count(shape) <= -(-whole[0] // 2) * count(whole) // whole[0], (name, rank, key)
                elif key.rpartition("/")[2] not in divided:
                    assert rank == 0, key
        assert counts == {key: count(entry.shape) for key, entry in stored.entries.items()}  # each element once
    writers = sum(file.stat().st_size > 3000 for file in path.glob("optimizer-*"))
    assert writers == (2 if name == "hybrid" else world)  # of two copies one writes


def pieces(file: Path) -> dict[str, tuple[list[int], list[int], list[int]]]:
    """Return (shape, offset, whole shape) of each tensor of a file."""
    with safe_open(file, "pt") as opened:
        told = json.loads((opened.metadata() or {})[HEADER])
        return {
            name: (opened.get_slice(name).get_shape(), told[name][OFFSETS], told[name][WHOLE])
            for name in opened.keys()  # noqa: SIM118
        }


def count(shape: Any) -> int:
    number = 1
    for length in shape:
        number *= length
    return number


def test_the_groups_of_a_run_wait_as_long_as_it_says(tmp_path: Path) -> None:
    assert in_processes(_timed, [(tmp_path,)] * 2, machines(2), 200) == [0, 0]


def _timed(folder: Path) -> None:
    from torch.distributed import distributed_c10d

    seen: set[float] = set()

    def saved(trainer: L.Trainer, *_: Any, **__: Any) -> None:
        groups = [*trainer.strategy.device_mesh.get_all_groups(), distributed_c10d._get_default_group()]
        seen.update(g._get_backend(trainer.strategy.root_device).options._timeout.total_seconds() for g in groups)

    L.Trainer.save_checkpoint = saved  # type: ignore[method-assign,assignment]
    trainer = {"timeout": 77, "validate_every": None}
    go(folder, Cell("llama", {"kind": "fsdp"}, trainer, steps=4), folder / f"rows{os.environ['RANK']}")
    assert seen == {77.0}, seen
