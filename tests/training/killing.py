"""Runs that save after every step and are killed while they do: for a few kills of the suite, and many by hand."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard
from training_runs import Run, _with_environment, ranks

from mlplatform.training.checkpoints import checkpoints, clean, folder_name, newest_whole, prune, step_of
from mlplatform.training.saving import FolderIO
from mlplatform.training.shards import Stored

Processes = list[Any]


def one_process(folder: Path, steps: int) -> None:
    """Train a small Llama to that many steps, from its newest checkpoint, saving after each beside the next."""
    trainer = {"max": f"{steps} steps", "checkpoint_every": "1 steps", "validate_every": None, "ema": 0.9, "keep": 2}
    run = Run(folder, trainer=trainer, schedule={"kind": "constant", "warmup": "0 steps"})
    run.go(newest_whole(folder / "checkpoints")[0])


def rank_of_two(folder: Path, steps: int) -> None:
    """The same with a network that two ranks hold half of each, and each writes its half."""
    init_process_group("gloo")
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    for part in (*model, model):
        fully_shard(part)
    optimizer = torch.optim.AdamW([{"params": list(model.named_parameters())}], lr=1e-3)
    place = folder / "checkpoints"
    last = newest_whole(place)[0]
    io = FolderIO(live=model.state_dict, kept=lambda: prune(place, 2, 0), background=True)
    torch.distributed.barrier()  # both have looked before one of them clears up
    if torch.distributed.get_rank() == 0:
        clean(place, last)
    done = 0
    if last is not None:
        state = io.load_checkpoint(last)
        model.load_state_dict({name.removeprefix("model."): t for name, t in state["state_dict"].items()})
        optimizer.load_state_dict(state["optimizer_states"][0])
        done = state["done"]
    for step in range(done + 1, steps + 1):
        inputs = torch.randn(8, 64, generator=torch.Generator().manual_seed(step))
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        io.save_checkpoint(
            {"state_dict": weights, "optimizer_states": [optimizer.state_dict()], "done": step},
            place / folder_name(step),
        )
    io.join()
    destroy_process_group()


WAYS: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "one process": (one_process, 1),
    "two ranks": (rank_of_two, 2),
}


def start(way: str, folder: Path, steps: int) -> Processes:
    """Start the processes of a run, or go on with it."""
    target, world = WAYS[way]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch", "training_runs", "killing"])
    envs = ranks(world) if world > 1 else [{}]
    started = []
    for env in envs:
        given = ({**os.environ, **env}, _silently, (target, folder, steps))
        process = context.Process(target=_with_environment, args=given)
        process.start()
        started.append(process)
    return started


def _silently(target: Callable[..., None], folder: Path, steps: int) -> None:
    """Train; what a rank says that lost the other is expected."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
        target(folder, steps)


def finish(way: str, folder: Path, steps: int) -> None:
    """Train to that many steps without disturbance."""
    processes = start(way, folder, steps)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def kill_during_a_save(way: str, folder: Path, chance: random.Random) -> tuple[bool, bool]:
    """Go on with a run and kill one process, or all, at a random moment around a save.

    Returns:
        Whether a save was under way, and whether what was whole before is whole, or gone in favour of a newer one.
    """
    place = folder / "checkpoints"
    before = newest_whole(place)[0]
    known = step_of(before) if before else 0
    processes = start(way, folder, 10**6)
    aim, deadline = known + chance.randrange(1, 4), time.monotonic() + 60
    while not (place / f".tmp-{folder_name(aim)}").exists() and time.monotonic() < deadline:
        if not all(process.is_alive() for process in processes):
            raise AssertionError(f"{way}: a process ended by itself")
        time.sleep(0.0005)
    time.sleep(chance.random() * 0.03)
    left = newest_whole_at(place)
    chosen = chance.choice([*[[p] for p in processes], processes])
    for process in chosen:
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(chance.random() * 0.03)  # the others notice, and the agent ends them
    for process in processes:
        process.kill()
        process.join(30)
    found, notes = newest_whole(place)
    under_way = any(place.glob(".tmp-step=*"))
    return under_way, not notes and (step_of(found) if found else 0) >= max(known, left)


def newest_whole_at(place: Path) -> int:
    """Return the newest step that has its name now; it must never be lost."""
    return max(map(step_of, checkpoints(place)), default=0)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of the last checkpoint."""
    path = newest_whole(folder / "checkpoints")[0]
    assert path is not None
    found = {stem: Stored(path, stem) for stem in ("model", "optimizer", "ema")}
    return {f"{stem}/{name}": stored[name] for stem, stored in found.items() for name in stored}
