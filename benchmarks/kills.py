"""Kills runs at random moments of their saves, goes on with them, and counts what was lost.

    python benchmarks/kills.py [200] [--seed 0]

Half of the kills meet a process that trains and saves after every step, half two ranks of fsdp that each write their
half, of which one or both are killed. What was whole before a kill must be whole after it, and in the end every tensor must be
that of a run nobody disturbed. It is the harness of tests/training/test_kills.py.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from measure import script

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/training"))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    import torch
    from killing import WAYS, finish, kill_during_a_save, newest_whole_at, weights

    lost, start = 0, time.perf_counter()
    print(script())
    for way in WAYS:
        chance, number = random.Random(given.seed), given.kills // len(WAYS)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "killed"
            found = [kill_during_a_save(way, folder, chance) for _ in range(number)]
            steps = newest_whole_at(folder / "checkpoints") + 2
            finish(way, folder, steps)
            finish(way, Path(place) / "whole", steps)
            ours, theirs = weights(folder), weights(Path(place) / "whole")
            equal = all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
        survived, inside = sum(whole for _, whole in found), sum(under_way for under_way, _ in found)
        end = "equal to" if equal else "DIFFERENT from"
        print(f"{way}: {survived} of {number} kills lost no checkpoint, {inside} of them inside a save; ", end="")
        print(f"after {steps} steps every tensor is {end} the undisturbed run's", flush=True)
        lost += number - survived + (not equal)
    print(f"{time.perf_counter() - start:.0f} s")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
