"""SIGKILL at random moments of a save never costs a checkpoint, and the run ends as if nothing had been.

benchmarks/kills.py does the same two hundred times.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from killing import WAYS, finish, kill_during_a_save, newest_whole_at, weights

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("way", WAYS)
def test_killed_while_saving_no_checkpoint_is_lost_and_the_end_is_the_same(tmp_path: Path, way: str) -> None:
    chance = random.Random(1)
    folder = tmp_path / "killed"
    found = [kill_during_a_save(way, folder, chance) for _ in range(6)]
    assert all(whole for _, whole in found)
    assert sum(under_way for under_way, _ in found) >= 2
    steps = newest_whole_at(folder / "checkpoints") + 2
    finish(way, folder, steps)
    finish(way, tmp_path / "whole", steps)
    assert newest_whole_at(folder / "checkpoints") == steps
    ours, theirs = weights(folder), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert not list((folder / "checkpoints").glob(".tmp-*"))
