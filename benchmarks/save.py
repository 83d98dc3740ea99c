"""How long saving keeps training waiting: written beside training, and written while it waits, alternately.

    python benchmarks/save.py [--dim 512] [--depth 8] [--rounds 12] [--ranks 2]

With `--ranks` the model is divided among that many processes, as under fsdp, and each writes its part. Both take the same checkpoint of a Llama and its AdamW state. `blocked` is the time until training may go on; the
background write then ends before the next round begins. The first save of a process takes memory for its copy and is
told apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import script
from torch import distributed

from mlplatform.models import build
from mlplatform.training.saving import FolderIO
from mlplatform.training.sharding.mesh import Mesh, MeshShare


def llama(dim: int, depth: int) -> dict[str, Any]:
    """Return the spec of a Llama with a vocabulary of 16,000."""
    layer = {
        "kind": "pre_norm",
        "attention": {"kind": "attention", "heads": dim // 64, "rope": {"kind": "rope"}},
        "mlp": {"kind": "gated_mlp", "width": 3 * dim, "activation": "silu"},
    }
    trunk = {"kind": "transformer", "dim": dim, "depth": depth, "context_length": 128, "layer": layer}
    trunk |= {"norm": {"kind": "rms_norm", "eps": 1e-5}, "input": {"kind": "tokens", "vocab": 16_000}}
    return {"kind": "single_tower", "trunk": trunk, "head": {"kind": "lm_head", "tied": True}}


def checkpoint(dim: int, depth: int, ranks: int) -> dict[str, Any]:
    """Return what Lightning would hand over after a step, on each of the ranks."""
    model: Any = build(llama(dim, depth), seed=0)
    if ranks > 1:
        share = MeshShare(Mesh(1, ranks, 1), distributed.get_rank())
        share.join("cpu")
        share.divide(model)
    optimizer = torch.optim.AdamW([{"params": list(model.named_parameters())}])
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return {"state_dict": weights, "optimizer_states": [optimizer.state_dict()], "score": None}


def timed(io: FolderIO, what: dict[str, Any], path: Path, ranks: int) -> tuple[float, float]:
    """Save once; return the seconds until training may go on, and until the checkpoint is whole."""
    if ranks > 1:
        distributed.barrier()
    start = time.perf_counter()
    io.save_checkpoint(what, path)
    blocked = time.perf_counter() - start
    io.join()
    if ranks > 1:
        distributed.barrier()
    whole = time.perf_counter() - start
    if ranks == 1 or distributed.get_rank() == 0:
        io.remove_checkpoint(path)
    return blocked, whole


def measure(rank: int, given: argparse.Namespace, folder: str) -> None:
    """Take turns, as one of the ranks; rank 0 prints what it found."""
    torch.set_num_threads(1)
    if given.ranks > 1:
        distributed.init_process_group(init_method=f"file://{folder}/meeting", rank=rank, world_size=given.ranks)
    what = checkpoint(given.dim, given.depth, given.ranks)
    size = sum(t.nbytes for t in what["state_dict"].values()) * 3
    beside, waiting = FolderIO(background=True), FolderIO()
    first, _ = timed(beside, what, Path(folder) / "step=00000000", given.ranks)
    rows = []
    for number in range(1, given.rounds + 1):
        path = Path(folder) / f"step={number:08d}"
        order = (beside, waiting) if number % 2 else (waiting, beside)
        pair = [timed(io, what, path, given.ranks) for io in order]
        rows.append(pair if number % 2 else pair[::-1])
    if rank > 0:
        return
    ratio = statistics.median(b[0] / w[0] for b, w in rows)
    print(f"{script()}: {size / 1e6:.0f} MB, medians of {given.rounds} rounds")
    print(f"training waits {statistics.median(b[0] for b, _ in rows) * 1e3:.0f} ms beside it, ", end="")
    print(f"{statistics.median(w[0] for _, w in rows) * 1e3:.0f} ms without; {ratio:.1%} (median of ratios)")
    print(f"the first save of a process keeps it waiting {first * 1e3:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        if given.ranks == 1:
            measure(0, given, folder)
        else:
            torch.multiprocessing.spawn(measure, (given, folder), nprocs=given.ranks)


if __name__ == "__main__":
    main()
