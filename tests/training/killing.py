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
from training_runs import Run, _with_environment, ranks

from mlplatform.training.checkpoints import checkpoints, folder_name, newest_whole, step_of
from mlplatform.training.shards import Stored

Processes = list[Any]


def one_process(folder: Path, steps: int) -> None:
    """Train a small Llama to that many steps, from its newest checkpoint, saving after each beside the next."""
    _train(folder, folder, steps)


def rank_of_two(folder: Path, steps: int) -> None:
    """The same under fsdp: two ranks hold half of every tensor each, and write it."""
    _train(folder, folder / f"rank{os.environ['RANK']}", steps, devices=2, strategy="fsdp")


def _train(folder: Path, own: Path, steps: int, devices: int = 1, strategy: str = "single") -> None:
    trainer = {"max": f"{steps} steps", "checkpoint_every": "1 steps", "validate_every": None, "ema": 0.9, "keep": 2}
    schedule = {"kind": "constant", "warmup": "0 steps"}
    run = Run(own, trainer={**trainer, "devices": devices}, schedule=schedule, strategy={"kind": strategy})
    run.go(newest_whole(folder / "checkpoints")[0], folder=folder / "checkpoints")


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
