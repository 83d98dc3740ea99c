"""The most memory each rank takes while it makes its part of a model, steps and saves; beside one process's.

    python benchmarks/shard_memory.py [--strategy fsdp] [--ranks 2] [--init-from] [--adapter]

Each run is made of new processes. Counted is memory of their own (`RssAnon`: no file's pages) above what they had
before the model was made; `start` is until the model has its values, `run` until the end of a step of AdamW and a save.
With `--init-from` the values come from a checkpoint of Hugging Face's format in bf16 (of one in fp32 a process that has
all would use the file's pages), else they are drawn. With `--adapter` LoRA's matrices train and are saved, alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from load import SIZE
from measure import script

import mlplatform as mp
from mlplatform.models import build
from mlplatform.models.trained import trained_names
from mlplatform.registry import Spec
from mlplatform.runs.weights import first_values, given
from mlplatform.training.saving import FolderIO
from mlplatform.training.strategies import Place


class Anonymous:
    """The most memory of its own that this process has, looked at every millisecond."""

    def __init__(self) -> None:
        self.start = self.most = now()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.most = max(self.most, now())
            time.sleep(0.001)

    @property
    def above(self) -> float:
        time.sleep(0.01)
        return (self.most - self.start) / 1e6


def now() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def begun(spec: Any, source: str | None, adapter: bool, later: bool) -> Any:
    """Return a model with its values, or one that gets them as it is divided."""
    model = build(spec, device="meta")
    given(model, first_values(model, source, {}), later=later)
    if adapter:
        Spec.of({"kind": "lora", "targets": ["trunk.layers"]}, "adapter", "adapter").build().apply(model)
    return model


def rank(number: int, asked: argparse.Namespace, ranks: int, folder: str) -> None:
    """Make this rank's part of the model, take a step and save; write down what it took."""
    torch.set_num_threads(1)
    spec = mp.compose("llama", SIZE)
    begun(mp.compose("llama_tiny"), None, asked.adapter, later=False)  # what is imported and kept is no part of it
    share: Any = None
    if ranks > 1:
        meeting = f"file://{folder}/meeting"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=number, world_size=ranks)
        share = (
            Spec.of({"kind": asked.strategy}, "strategy", "strategy").build().share(Place("cpu", ranks, number, ranks))
        )
        share.join("cpu")
    used = Anonymous()
    model = begun(spec, asked.init_from, asked.adapter, later=share is not None)
    if share is not None:
        share.divide(model)
    started = used.above
    learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([{"params": list(learns.items())}], foreach=False)
    for p in learns.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    kept = trained_names(model) if asked.adapter else model.state_dict().keys()
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items() if name in kept}
    io = FolderIO()
    io.save_checkpoint(
        {"state_dict": weights, "optimizer_states": [optimizer.state_dict()]}, Path(folder) / "step=00000001"
    )
    (Path(folder) / f"{number}.json").write_text(json.dumps([started, used.above]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--strategy", default="fsdp")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--init-from", action="store_true")
    parser.add_argument("--adapter", action="store_true")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(script())
    with tempfile.TemporaryDirectory() as place:
        if asked.init_from:
            asked.init_from = f"{place}/source"
            mp.save(mp.build("llama", SIZE).bfloat16(), asked.init_from)
        compare(asked)


def compare(asked: argparse.Namespace) -> None:
    for ranks in (1, asked.ranks):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(rank, (asked, ranks, folder), nprocs=ranks)
            found = [json.loads((Path(folder) / f"{number}.json").read_text()) for number in range(ranks)]
        for number, (started, end) in enumerate(found):
            who = "one process" if ranks == 1 else f"rank {number} of {ranks}"
            print(f"{who}: {started:.0f} MB when the model has its values, {end:.0f} MB at the end")


if __name__ == "__main__":
    main()
