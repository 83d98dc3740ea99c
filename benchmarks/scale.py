"""Two processes beside one with the same global batch, one thread each: how many times as fast a step is.

python benchmarks/scale.py                      # ddp and fsdp, on two cores
python benchmarks/scale.py --strategies tp,zero2 --rounds 5 --steps 4

One process and two are alive at the same time and take turns, so that what else the machine does meets both; a figure
is the median of their ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

MODEL = [
    "trunk.dim=384",
    "trunk.depth=6",
    "trunk.context_length=256",
    "trunk.input.vocab=8192",
    "trunk.layer.attention.heads=6",
    "trunk.layer.attention.kv_heads=6",
    "trunk.layer.mlp.width=1024",
]
ROWS, LENGTH = 8, 256


def work(strategy: str, rounds: int, steps: int) -> None:
    """Train, as one rank: for each line on standard input take `steps` steps, and write down their seconds."""
    import torch

    import mlplatform as mp
    from mlplatform.registry import Spec
    from mlplatform.training.engine import fit
    from mlplatform.training.progress import Quiet
    from mlplatform.training.strategies import Place

    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    kind = Spec.of({"kind": strategy}, "strategy", "strategy")
    share = kind.build().share(Place.find("cpu", world))
    task = Spec.of({"kind": "causal_lm"}, "task", "task").build(model=mp.build("llama", MODEL).train())

    class Batches:
        """The same random tokens at every step, this rank's part of them."""

        shape = argparse.Namespace(sequences=ROWS, length=LENGTH, timeout=600.0, workers=0)
        material = argparse.Namespace(name="random tokens")
        steps_per_epoch = 1.0

        def train_dataloader(self) -> Any:
            return self

        def val_dataloader(self) -> list[Any]:
            return []

        def __len__(self) -> int:
            return 2**31 - 1

        def __iter__(self) -> Any:
            tokens = torch.randint(0, 8192, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
            part = tokens.chunk(share.count)[share.number]
            step, begun = 0, 0.0
            while True:
                if step % steps == 0:
                    if step and rank == 0:
                        print(json.dumps(time.perf_counter() - begun), flush=True)
                    if rank == 0:
                        sys.stdin.readline()
                    if world > 1:
                        torch.distributed.barrier()
                    begun = time.perf_counter()
                yield [{"input_ids": part, "labels": part}]
                step += 1

        def state_dict(self) -> dict[str, int]:
            return {}

        def load_state_dict(self, state: dict[str, int]) -> None:
            """Nothing to restore."""

    told = {"kind": "trainer", "accelerator": "cpu", "devices": world, "validate_every": None}
    fit(
        task,
        Batches(),
        trainer=Spec.of({**told, "max": f"{(rounds + 1) * steps + 1} steps"}, "trainer", "trainer"),
        optimizer=Spec.of({"kind": "adamw"}, "optimizer", "optimizer"),
        schedule=Spec.of({"kind": "constant"}, "schedule", "schedule"),
        strategy=kind,
        show=Quiet(),
    )


class Group:
    """The processes of one strategy, which wait for a word."""

    def __init__(self, strategy: str, world: int, rounds: int, steps: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        both = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
        both |= {"LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "scale"}
        command = [sys.executable, __file__, "--work", strategy, "--rounds", str(rounds), "--steps", str(steps)]
        self.processes = []
        for rank in range(world):
            own = {**both, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {"OMP_NUM_THREADS": "1"}
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE} if rank == 0 else {}
            self.processes.append(subprocess.Popen(command, env={**os.environ, **own}, text=True, **pipes))

    def turn(self) -> float:
        """Let the processes take their steps; return the seconds."""
        first = self.processes[0]
        given, said = first.stdin, first.stdout
        assert given is not None
        assert said is not None
        print(file=given, flush=True)
        while not (line := said.readline()).strip().replace(".", "").isdigit():
            if not line:
                raise RuntimeError("a process of the benchmark ended early; its message is above")
        return float(line)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", default="ddp,fsdp")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        return work(given.work, given.rounds, given.steps)
    print(f"{'strategy':10} {'one process s':>14} {'two processes s':>16} {'speed-up':>9}")
    for strategy in given.strategies.split(","):
        one, two = Group("single", 1, given.rounds, given.steps), Group(strategy, 2, given.rounds, given.steps)
        try:
            pairs = []
            for number in range(given.rounds + 1):
                turns = [group.turn() for group in ((one, two) if number % 2 else (two, one))]
                pairs.append(turns if number % 2 else turns[::-1])
            ratio = statistics.median(alone / both for alone, both in pairs[1:])  # the first turn warms up
            alone, both = (statistics.median(times) / given.steps for times in zip(*pairs[1:], strict=True))
            print(f"{strategy:10} {alone:14.3f} {both:16.3f} {ratio:8.2f}x", flush=True)
        finally:
            one.end()
            two.end()


if __name__ == "__main__":
    main()
