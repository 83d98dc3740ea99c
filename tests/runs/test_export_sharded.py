"""From a checkpoint that two ranks wrote to Hugging Face's folder: no process group, and little memory."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import finished, prepared
from torch.distributed import destroy_process_group, init_process_group, is_initialized
from torch.distributed.fsdp import fully_shard

from mlplatform.models import build
from mlplatform.runs.config_file import read_config
from mlplatform.runs.export import export, load_run
from mlplatform.training.checkpoints import folder_name
from mlplatform.training.saving import FolderIO

pytestmark = pytest.mark.distributed
WIDE = ["model.trunk.dim=512", "model.trunk.depth=10", "model.trunk.layer.mlp.width=1536"]


def in_processes(*calls: tuple[Any, ...]) -> list[int | None]:
    """Run functions with their arguments at once; return the exit codes of their processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlplatform.runs.worker", "mlplatform.cli.compose"])
    processes = [context.Process(target=target, args=arguments) for target, *arguments in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    return [process.exitcode for process in processes]


def _write(run: Path, rank: int) -> None:
    """One of two ranks: write half of a model of 130 MB as a checkpoint of a run."""
    init_process_group("gloo", init_method=f"file://{run}/meeting", rank=rank, world_size=2)
    model = build(read_config(run)["model"], seed=3)
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in (*model.trunk.layers, model):  # type: ignore[union-attr,misc]
        fully_shard(layer)
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    optimizer = {"state": {}, "param_groups": []}
    checkpoint = {"state_dict": weights, "optimizer_states": [optimizer]}
    FolderIO().save_checkpoint(checkpoint, run / "checkpoints" / folder_name(1))
    if rank == 0:
        torch.save(whole, run / "whole.pt")
    destroy_process_group()


class Anonymous:
    """The most memory of its own, no file's, that this process takes meanwhile."""

    def __enter__(self) -> Anonymous:
        self.start = self.most = self._now()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.over.is_set():
            self.most = max(self.most, self._now())
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    @staticmethod
    def _now() -> int:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert found is not None
        return int(found[1]) * 1024


def _export(run: Path) -> None:
    """Export in pieces, then load the run whole, as a control of the measure."""
    assert not is_initialized()
    export(run, run / "first")  # what is imported and kept is no part of it
    with Anonymous() as streamed:
        export(run, run / "exported", shard_size=60 << 20)
    with Anonymous() as loaded:
        kept = load_run(run)
    del kept
    (run / "taken.json").write_text(json.dumps([streamed.most - streamed.start, loaded.most - loaded.start]))


def test_it_is_written_tensor_by_tensor(tmp_path: Path) -> None:
    run = prepared(tmp_path, *WIDE)
    assert in_processes((_write, run, 0), (_write, run, 1)) == [0, 0]
    shutil.copytree(finished(tmp_path) / "tokenizer", run / "tokenizer")
    assert in_processes((_export, run)) == [0]
    whole = torch.load(run / "whole.pt")
    size = sum(tensor.nbytes for tensor in whole.values())
    assert size > 120e6
    streamed, loaded = json.loads((run / "taken.json").read_text())
    assert loaded > 0.5 * size  # some of it is what the export before let go of
    assert streamed < 0.2 * size  # three of its largest tensors are 9 MB; the largest shard is 65 MB
    files = sorted((run / "exported").glob("*.safetensors"))
    assert len(files) == 3
    exported = {name: tensor for file in files for name, tensor in load_file(file).items()}
    in_one = load_file(run / "first/model.safetensors")
    assert in_one.keys() == exported.keys()
    assert all(torch.equal(tensor, exported[name]) for name, tensor in in_one.items())
    ours = {name: tensor for name, tensor in whole.items() if not name.startswith("head.")}
    layer = "model.layers.4.mlp.down_proj.weight"
    assert torch.equal(exported[layer], ours["trunk.layers.4.mlp.down.weight"])
    assert sum(tensor.nbytes for tensor in exported.values()) == size
