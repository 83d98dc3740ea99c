"""The random numbers of training go on where they were, and nothing between steps moves them."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mlplatform.models.share import Share
from mlplatform.training.rng import Randomness, capture, restore, seed_all


def draw() -> list[float]:
    return [random.random(), random.gauss(), float(np.random.rand()), float(np.random.randn()), torch.rand(()).item()]


def trainer(rank: int = 0, world: int = 1, step: int = 0) -> Any:
    return SimpleNamespace(global_rank=rank, world_size=world, global_step=step)


def module(rank: int = 0, world: int = 1) -> Any:
    return SimpleNamespace(share=Share(rank, world))


def started(seed: int, **place: int) -> Randomness:
    randomness = Randomness(seed)
    randomness.on_train_start(trainer(**place), module(**place))  # type: ignore[arg-type]
    return randomness


def stepped(randomness: Randomness) -> list[float]:
    randomness.on_train_batch_start(None, None, None, 0)  # type: ignore[arg-type]
    drawn = draw()
    randomness.on_train_batch_end()
    return drawn


def test_goes_on_exactly_through_json() -> None:
    seed_all(11)
    draw()  # leaves a second normal number waiting in python's and numpy's generators
    state = json.loads(json.dumps(capture()))
    expected = [draw() for _ in range(3)]
    seed_all(12)
    restore(state)
    assert [draw() for _ in range(3)] == expected


def test_what_happens_between_steps_changes_nothing() -> None:
    alone = started(5)
    expected = [stepped(alone) for _ in range(3)]
    disturbed = started(5)
    found = []
    for _ in range(3):
        found.append(stepped(disturbed))
        draw()
        torch.manual_seed(0)
    assert found == expected
    assert len({tuple(numbers) for numbers in found}) == 3


def test_seeds_and_ranks_draw_differently() -> None:
    first = {tuple(stepped(started(seed, rank=rank, world=2))) for seed in (0, 1) for rank in (0, 1)}
    assert len(first) == 4


def test_another_number_of_ranks_starts_new_streams() -> None:
    saved: dict[str, Any] = {}
    one = started(5)
    stepped(one)
    one.on_save_checkpoint(trainer(), module(), saved)  # type: ignore[arg-type]
    same, more = Randomness(5), Randomness(5)
    for other, world in ((same, 1), (more, 2)):
        other.on_load_checkpoint(None, None, saved)  # type: ignore[arg-type]
        other.on_train_start(trainer(world=world, step=1), module(world=world))  # type: ignore[arg-type]
    expected = stepped(one)
    assert stepped(same) == expected
    assert stepped(more) != expected
