"""Checkpoints of tensors that are spread over ranks: written piece by piece, read back under any other layout."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from training_runs import in_process, in_processes, ranks

from mlplatform.errors import CheckpointError, RunError
from mlplatform.training.checkpoints import damage, folder_name
from mlplatform.training.saving import FolderIO
from mlplatform.training.shards import Stored, Unread

pytestmark = pytest.mark.distributed
STEP = 3


def network() -> nn.Sequential:
    """Return a small network; 7 rows do not divide evenly, and one tensor has a single row."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Linear(7, 10), nn.Linear(10, 1))


def trained(model: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer that has made three steps."""
    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW([{"params": named, "weight_decay": 0.1}], lr=1e-2)
    for step in range(STEP):
        inputs = torch.linspace(-1, 1, 24).reshape(4, 6) * (step + 1)
        model(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def taken(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a checkpoint as Lightning hands it over; the averages are twice the weights."""
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    ema = {name: tensor.detach() * 2 for name, tensor in model.named_parameters()}
    return {"state_dict": weights, "optimizer_states": [optimizer.state_dict()], "ema": ema, "loops": {"at": STEP}}


def spread(model: nn.Module, layout: str) -> None:
    """Spread a model over the ranks there are."""
    world = int(os.environ["WORLD_SIZE"])
    if layout in ("fully_shard", "two dimensions"):
        mesh = init_device_mesh("cpu", (world,))
        if layout == "two dimensions":
            mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("copies", "pieces"))
        for part in (*model, model):  # type: ignore[misc]
            fully_shard(part, mesh=mesh)
        return
    mesh = init_device_mesh("cpu", (world,))
    place: Any = {"columns": lambda p: [Shard(p.dim() - 1)], "copies": lambda p: [Replicate()]}[layout]
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(distribute_tensor(parameter.data, mesh, place(parameter))))


class group:
    """The process group of this test's ranks."""

    def __enter__(self) -> None:
        init_process_group("gloo")

    def __exit__(self, *_: object) -> None:
        destroy_process_group()


def _save(folder: Path, layout: str) -> None:
    with group():
        model = network()
        spread(model, layout)
        optimizer = trained(model)
        io = FolderIO(background=True)
        io.save_checkpoint(taken(model, optimizer), folder / folder_name(STEP))
        with torch.no_grad():  # training goes on; what was taken stays
            for parameter in model.parameters():
                parameter.zero_()
        io.join()


def test_a_stretch_of_a_flat_tensor_reads_the_rows_that_hold_it(tmp_path: Path) -> None:
    tensors = {"cube": torch.arange(84.0).reshape(7, 4, 3), "row": torch.arange(5.0), "scalar": torch.tensor(3.0)}
    save_file(tensors, tmp_path / "model.safetensors")
    stored = Stored(tmp_path, "model")
    read: list[tuple[int, ...]] = []
    whole = stored.read
    stored.read = lambda *asked: (read.append(asked[-1]), whole(*asked))[1]  # type: ignore[method-assign,assignment]
    for name, tensor in tensors.items():
        unread = Unread(stored, name)
        assert unread.shape == tensor.shape
        assert torch.equal(unread.whole(), tensor)
        numbers = tensor.flatten()
        for start in range(len(numbers) + 1):
            for count in {0, 1, (len(numbers) - start) // 2, len(numbers) - start}:
                if start + count <= len(numbers):
                    assert torch.equal(unread.stretch(start, count), numbers[start : start + count])
    read.clear()
    assert Unread(stored, "cube").stretch(13, 20).tolist() == list(range(13, 33))
    assert read == [(2, 4, 3)]  # of seven


def _load(folder: Path, layout: str) -> None:
    """Resume under another layout, and write down all there is, gathered."""
    with group():
        model = network()
        spread(model, layout)
        live = {name: tensor.to_local().shape for name, tensor in model.state_dict().items()}
        loaded = FolderIO(live=model.state_dict).load_checkpoint(folder / folder_name(STEP))
        for name, tensor in loaded["state_dict"].items():  # only this rank's part was read
            assert tensor.to_local().shape == live[name.removeprefix("model.")]
        model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in loaded["state_dict"].items()})
        optimizer = torch.optim.AdamW([{"params": list(model.named_parameters())}])
        optimizer.load_state_dict(loaded["optimizer_states"][0])
        assert optimizer.param_groups[0]["weight_decay"] == 0.1
        found = flat(taken(model, optimizer) | {"ema": loaded["ema"]})
        whole = {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in found.items()}
        if int(os.environ["RANK"]) == 0:
            torch.save(whole, folder / "loaded.pt")


def flat(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return every tensor of a checkpoint."""
    state = checkpoint["optimizer_states"][0]
    names = state["param_groups"][0]["param_names"]
    moments = {
        f"{key}/{names[number]}": value for number, entries in state["state"].items() for key, value in entries.items()
    }
    averages = {f"ema/{name}": tensor for name, tensor in checkpoint["ema"].items()}
    return checkpoint["state_dict"] | moments | averages


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint two ranks of fully_shard wrote."""
    folder = tmp_path_factory.mktemp("sharded")
    assert in_processes(_save, [(folder, "fully_shard")] * 2, ranks(2)) == [0, 0]
    return folder


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """What one process has after the same steps."""
    model = network()
    return flat(taken(model, trained(model)))


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


def test_each_rank_writes_its_own_pieces_and_every_element_once(written: Path) -> None:
    path = written / folder_name(STEP)
    names = {file.name for file in path.iterdir()}
    parts = {f"{stem}-0000{n}-of-00002.safetensors" for stem in ("model", "optimizer", "ema") for n in (1, 2)}
    assert names == {*parts, "state.json", "manifest.json"}
    assert damage(path) is None
    assert set(json.loads((path / "manifest.json").read_text())["files"]) == names - {"manifest.json"}
    sizes = {stem: sum(p.stat().st_size for p in path.glob(f"{stem}-*")) for stem in ("model", "optimizer")}
    count = sum(p.numel() for p in network().parameters())
    assert 4 * count < sizes["model"] < 4 * count + 2 * 2048
    assert 8 * count < sizes["optimizer"] < 8 * count + 2 * 4096
    (path / "model-00002-of-00002.safetensors").rename(path / "away")
    assert damage(path) == "model-00002-of-00002.safetensors is missing"
    with pytest.raises(CheckpointError, match=r"the files of model hold \d+ of the \d+ numbers of .*; one of them is"):
        Stored(path, "model")
    (path / "away").rename(path / "model-00002-of-00002.safetensors")


def test_one_process_reads_what_two_ranks_wrote(written: Path, expected: dict[str, torch.Tensor]) -> None:
    same(flat(FolderIO().load_checkpoint(written / folder_name(STEP))), expected)


@pytest.mark.parametrize(("layout", "world"), [("fully_shard", 2), ("columns", 2), ("copies", 2), ("fully_shard", 3)])
def test_other_ranks_and_layouts_read_them(
    written: Path, expected: dict[str, torch.Tensor], layout: str, world: int
) -> None:
    assert in_processes(_load, [(written, layout)] * world, ranks(world)) == [0] * world
    same(torch.load(written / "loaded.pt"), expected)


def test_copies_over_a_second_dimension_are_written_once(tmp_path: Path, expected: dict[str, torch.Tensor]) -> None:
    assert in_processes(_save, [(tmp_path, "two dimensions")] * 4, ranks(4)) == [0] * 4
    path = tmp_path / folder_name(STEP)
    sizes = [p.stat().st_size for p in sorted(path.glob("model-*"))]
    assert sizes[2] == sizes[3] < min(sizes[:2])  # no more than an empty header
    same(flat(FolderIO().load_checkpoint(path)), expected)
    assert in_processes(_load, [(tmp_path, "two dimensions")] * 4, ranks(4)) == [0] * 4
    same(torch.load(tmp_path / "loaded.pt"), expected)


def test_torch_reads_our_pieces(written: Path, expected: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """The control: `torch.distributed.checkpoint` finds the same numbers in them."""
    for file in (written / folder_name(STEP)).glob("model-*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    found = {name: torch.zeros_like(tensor) for name, tensor in network().state_dict().items()}
    dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    same({f"model.{n}": t for n, t in found.items()}, {n: t for n, t in expected.items() if n.startswith("model.")})


# ---- when a rank can't ----


def _refuse(folder: Path) -> None:
    """Save once; then the second rank has no place for its files."""
    with group():
        model = network()
        spread(model, "fully_shard")
        checkpoint, io, rank = taken(model, trained(model)), FolderIO(background=True), int(os.environ["RANK"])
        io.save_checkpoint(checkpoint, folder / folder_name(1))
        io.join()
        if rank == 1:
            import resource
            import signal

            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
        io.save_checkpoint(checkpoint, folder / folder_name(2))
        try:
            io.join()
        except RunError as error:
            (folder / f"said{rank}").write_text(str(error)[:499])


def test_a_rank_that_can_not_write_fails_the_checkpoint_and_is_named(tmp_path: Path) -> None:
    assert in_processes(_refuse, [(tmp_path,)] * 2, ranks(2)) == [0, 0]
    first = tmp_path / folder_name(1)
    said = (tmp_path / "said0").read_text()
    assert f"{folder_name(2)}: can't write the checkpoint: rank 1: [Errno 27] File too large" in said
    assert f"the checkpoint before it, {first}, is whole" in said
    assert "File too large" in (tmp_path / "said1").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["said0", "said1", first.name]


def _alone(folder: Path) -> None:
    """The other rank dies before it writes."""
    from mlplatform.training import saving

    with group():
        model = network()
        spread(model, "fully_shard")
        checkpoint, io, rank = taken(model, trained(model)), FolderIO(background=True), int(os.environ["RANK"])
        if rank == 1:
            saving.write_tensors = lambda *_: os._exit(7)  # type: ignore[assignment]
        saving.HASTE = 0.5  # type: ignore[misc]
        io.save_checkpoint(checkpoint, folder / folder_name(2))
        try:
            io.join(last=True)
        except RunError as error:
            (folder / "said").write_text(str(error))
        os._exit(0)


def test_a_rank_that_died_is_not_waited_for_at_the_end(tmp_path: Path) -> None:
    assert in_processes(_alone, [(tmp_path,)] * 2, ranks(2)) == [0, 7]
    assert "rank 1 has written nothing for 1 s; it died, or" in (tmp_path / "said").read_text()
    assert not (tmp_path / folder_name(2)).exists()


# ---- beside training ----


def test_training_goes_on_while_it_is_written_and_the_next_save_waits(tmp_path: Path) -> None:
    model = network()
    optimizer = trained(model)
    gate, order = threading.Event(), []

    def slow(folder: Path) -> None:
        gate.wait(30)
        order.append(folder.name)

    io = FolderIO(slow, background=True)
    before = {name: tensor.clone() for name, tensor in flat(taken(model, optimizer)).items()}
    io.save_checkpoint(taken(model, optimizer), tmp_path / folder_name(1))
    assert not (tmp_path / folder_name(1)).exists()
    trained(model)  # three steps meanwhile
    io.check()  # nothing has gone wrong, and nothing is waited for
    threading.Timer(0.1, gate.set).start()
    io.save_checkpoint(taken(model, optimizer), tmp_path / folder_name(2))
    assert (tmp_path / folder_name(1)).is_dir()
    io.join()
    assert order == [f".tmp-{folder_name(1)}", f".tmp-{folder_name(2)}"]
    for name, tensor in flat(FolderIO().load_checkpoint(tmp_path / folder_name(1))).items():
        assert torch.equal(tensor, before[name]), name


def test_without_memory_for_a_copy_training_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 100})())
    model = network()
    io = FolderIO(background=True)
    for step in (1, 2):
        io.save_checkpoint(taken(model, trained(model)), tmp_path / folder_name(step))
        assert damage(tmp_path / folder_name(step)) is None
    assert io.pending is None
    assert [r.message for r in caplog.records] == [
        "no memory for a second copy of 0.0 GB: training waits while checkpoints are written"
    ]


def test_a_failed_save_is_told_at_the_next_step(tmp_path: Path) -> None:
    assert in_process(_told_at_the_next_step, tmp_path) == 0


def _told_at_the_next_step(folder: Path) -> None:
    def fill(_: Path) -> None:
        with Path("/dev/full").open("w") as full:
            full.write("config")

    model = network()
    io = FolderIO(fill, background=True)
    io.save_checkpoint(taken(model, trained(model)), folder / folder_name(1))
    assert io.pending is not None
    io.pending.exception()  # it ends
    with pytest.raises(RunError, match="the disk is full; there is no checkpoint before it"):
        io.check()
    io.join()  # told once
