"""Checkpoints are whole or not there: damage is found, a killed save leaves the ones before, a full disk too."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import Run, in_process

from mlplatform.errors import CheckpointError, RunError
from mlplatform.training import checkpoints
from mlplatform.training.checkpoints import clean, damage, folder_name, newest_whole, prune, score
from mlplatform.training.saving import FolderIO

OPTIONS: dict[str, Any] = {"trainer": {"ema": 0.9}, "optimizer": {"kind": "muon"}}


def state(step: int, loss: float | None = None) -> dict[str, Any]:
    """A small checkpoint as Lightning hands it over."""
    weight = torch.full((4, 4), float(step))
    groups = [{"lr": 0.1, "betas": (0.9, 0.95), "params": [0], "param_names": ["w"]}]
    groups.append({"lr": 0.2, "betas": (0.9, 0.95), "params": [1], "param_names": ["b"]})
    return {
        "global_step": step,
        "score": loss,
        "state_dict": {"model.w": weight, "model.b": weight[0].bfloat16()},
        "optimizer_states": [
            {"state": {0: {"step": torch.tensor(3.0), "m": weight * 2}, 1: {"m": None}}, "param_groups": groups}
        ],
        "loops": {"nested": [1, {"x": 0.1 + 0.2}]},
    }


def write(folder: Path, *steps: int, losses: dict[int, float] | None = None) -> list[Path]:
    paths = [folder / folder_name(step) for step in steps]
    for step, path in zip(steps, paths, strict=True):
        FolderIO().save_checkpoint(state(step, (losses or {}).get(step)), path)
    return paths


def test_comes_back_as_it_was(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 300, losses={300: 1.5})
    assert path.name == "step=00000300"
    files = {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    assert {p.name for p in path.iterdir()} == files
    assert set(load_file(path / "model.safetensors")) == {"w", "b"}
    assert set(load_file(path / "optimizer.safetensors")) == {"step/w", "m/w"}
    given, back = state(300, 1.5), FolderIO().load_checkpoint(path)
    assert back["loops"] == given["loops"]
    assert {n: t.dtype for n, t in back["state_dict"].items()} == {"model.w": torch.float32, "model.b": torch.bfloat16}
    moments = back["optimizer_states"][0]
    assert moments["param_groups"] == given["optimizer_states"][0]["param_groups"]
    assert torch.equal(moments["state"][0]["m"], torch.full((4, 4), 600.0))
    assert moments["state"][1] == {"m": None}
    assert score(path) == 1.5


def test_extra_files_are_guarded_too(tmp_path: Path) -> None:
    path = tmp_path / folder_name(1)
    FolderIO(lambda folder: (folder / "config.json").write_text("{}") and None).save_checkpoint(state(1), path)
    assert damage(path) is None
    (path / "config.json").write_text("[]")
    assert damage(path) == "config.json is not what was written (its checksum differs)"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "hurt", "says"),
    [
        ("model.safetensors", cut, r"model\.safetensors has \d+ bytes and should have \d+"),
        ("model.safetensors", flip, r"model\.safetensors is not what was written"),
        ("optimizer.safetensors", Path.unlink, r"optimizer\.safetensors is missing"),
        ("state.json", flip, r"state\.json is not what was written"),
        ("state.json", cut, r"state\.json has"),
        ("manifest.json", Path.unlink, r"manifest\.json is missing"),
        ("manifest.json", cut, r"manifest\.json can't be read"),
        ("manifest.json", lambda path: path.write_text("[]"), r"manifest\.json can't be read"),
        ("manifest.json", lambda path: path.write_bytes(b""), r"manifest\.json can't be read"),
    ],
)
def test_a_damaged_newest_one_is_found_and_the_one_before_is_used(
    tmp_path: Path, name: str, hurt: Any, says: str
) -> None:
    old, new = write(tmp_path, 100, 200)
    assert newest_whole(tmp_path) == (new, [])
    hurt(new / name)
    found, notes = newest_whole(tmp_path)
    assert found == old
    assert len(notes) == 2
    assert notes[1] == f"using the one before: {old}"
    with pytest.raises(CheckpointError, match=says) as caught:
        FolderIO().load_checkpoint(new)
    assert "\n" not in str(caught.value)
    assert str(new) in notes[0]


def test_none_is_whole(tmp_path: Path) -> None:
    assert newest_whole(tmp_path / "none") == (None, [])
    (only,) = write(tmp_path, 100)
    cut(only / "state.json")
    found, notes = newest_whole(tmp_path)
    assert found is None
    assert len(notes) == 1


def test_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4, 5, 6, losses={1: 9.0, 2: 3.0, 3: float("nan"), 4: 5.0, 6: 7.0})
    prune(tmp_path, keep=2, keep_best=2)
    assert [path.name[-1] for path in checkpoints.checkpoints(tmp_path)] == ["2", "4", "5", "6"]
    prune(tmp_path, keep=1, keep_best=0)
    assert [path.name[-1] for path in checkpoints.checkpoints(tmp_path)] == ["6"]
    assert [path.name for path in tmp_path.iterdir()] == ["step=00000006"]


def test_a_damaged_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 100)
    cut(path / "model.safetensors")
    write(tmp_path, 100)
    assert newest_whole(tmp_path) == (path, [])


def test_other_folders_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("step=12", "step=00000012.bak", ".tmp-step=00000012-1", "best"):
        (tmp_path / name).mkdir()
    assert checkpoints.checkpoints(tmp_path) == []
    clean(tmp_path, None)
    assert not (tmp_path / ".tmp-step=00000012-1").exists()
    with pytest.raises(CheckpointError, match="best is no checkpoint"):
        checkpoints.step_of(tmp_path / "best")


def test_resuming_leaves_the_future_behind(tmp_path: Path) -> None:
    old, damaged, _ = write(tmp_path, 100, 200, 300)
    cut(damaged / "state.json")
    clean(tmp_path, old)
    assert checkpoints.checkpoints(tmp_path) == [old]
    with pytest.raises(RunError, match=r"holds the checkpoints of a run, up to step=00000100; resume it"):
        clean(tmp_path, None)
    cut(old / "state.json")
    clean(tmp_path, None)  # nothing here can be resumed
    assert checkpoints.checkpoints(tmp_path) == []
    (elsewhere,) = write(tmp_path / "elsewhere", 50)
    (own,) = write(tmp_path / "own", 100)
    clean(tmp_path / "own", elsewhere)  # another run's checkpoint says nothing about this folder's
    assert checkpoints.checkpoints(tmp_path / "own") == [own]


# ---- killed while saving ----


def _die_at(folder: Path, operation: int) -> None:
    """Train, and kill this process when it is about to do its n-th durable operation on the disk."""
    count = 0
    real_fsync, real_rename = os.fsync, os.rename

    def dying(real: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **more)

        return call

    run = Run(folder, **OPTIONS)
    os.fsync, os.rename = dying(real_fsync), dying(real_rename)
    run.go()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("undisturbed"), **OPTIONS)
    run.go()
    return run


# A save is 4 files flushed, the manifest and the folder, the rename, and the parent flushed: 8 operations. The second
# save is numbers 9 to 16; the third, which also deletes the first, 17 to 25.
@pytest.mark.distributed
@pytest.mark.parametrize("operation", [3, 9, 12, 13, 14, 15, 16, 23, 24, 25])
def test_killed_inside_a_save_and_resumed_it_ends_the_same(tmp_path: Path, undisturbed: Run, operation: int) -> None:
    assert in_process(_die_at, tmp_path, operation) == -signal.SIGKILL
    last, notes = newest_whole(tmp_path / "checkpoints")
    assert notes == []  # nothing half-written has a checkpoint's name
    saved = 0 if last is None else checkpoints.step_of(last)
    assert saved == (operation - 8 + 7) // 8 * 4 if operation < 16 else saved in (8, 12)
    resumed = Run(tmp_path, **OPTIONS)
    assert resumed.go(last).status == "finished"
    assert resumed.record.exact() == [row for row in undisturbed.record.exact() if row[0] > saved]
    for name, tensor in undisturbed.weights().items():
        assert torch.equal(tensor, resumed.weights()[name]), name
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["step=00000008", "step=00000012"]


# ---- a full disk ----


def _write_with_limit(folder: Path, bytes_per_file: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_per_file, bytes_per_file))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        run = Run(folder)
        run.go(newest_whole(folder / "checkpoints")[0])
    except RunError as error:
        (folder / "said.json").write_text(json.dumps(str(error)))


@pytest.mark.distributed
@pytest.mark.parametrize("limit", [150_000, 60_000])  # the optimizer's file is too large; the weights' is too
def test_a_file_that_can_not_be_written_leaves_the_checkpoint_before(tmp_path: Path, limit: int) -> None:
    assert Run(tmp_path, trainer={"max": "4 steps"}).go().steps == 4
    assert in_process(_write_with_limit, tmp_path, limit) == 0
    said = json.loads((tmp_path / "said.json").read_text())
    assert said.startswith(f"{tmp_path}/checkpoints/step=00000008: can't write the checkpoint: ")
    assert said.endswith(f"the checkpoint before it, {tmp_path}/checkpoints/step=00000004, is whole")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step=00000004"]
    assert damage(tmp_path / "checkpoints/step=00000004") is None


def test_a_full_disk_is_called_so(tmp_path: Path) -> None:
    (old,) = write(tmp_path, 100)

    def fill(folder: Path) -> None:
        with Path("/dev/full").open("w") as full:  # every write to it fails as on a full disk
            full.write("config")

    with pytest.raises(
        RunError, match=r"step=00000200: can't write the checkpoint: the disk is full; .*00000100, is whole"
    ):
        FolderIO(fill).save_checkpoint(state(200), tmp_path / folder_name(200))
    assert list(tmp_path.iterdir()) == [old]
    with pytest.raises(RunError, match="the disk is full; there is no checkpoint before it"):
        FolderIO(fill).save_checkpoint(state(200), tmp_path / "new" / folder_name(200))
