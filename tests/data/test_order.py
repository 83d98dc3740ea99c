from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from mlplatform.data.order import GlobalBatches, in_turn, samples, shuffled


@pytest.mark.parametrize("count", [*range(1, 40), 255, 256, 257, 4097, 100_003])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 3)])
def test_an_epoch_is_every_sample_once(count: int, seed: int, epoch: int) -> None:
    order = shuffled(np.arange(count, dtype=np.uint64), count, seed, epoch)
    assert sorted(order.tolist()) == list(range(count))


def test_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return shuffled(np.arange(1000, dtype=np.uint64), 1000, seed, epoch).tolist()

    assert order(1, 1) == order(1, 1)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert sum(a == b for a, b in zip(order(1, 1), range(1000), strict=True)) < 10  # near 1 for a random order


def test_every_sample_is_as_likely_first() -> None:
    firsts = Counter(int(shuffled(np.zeros(1, np.uint64), 7, seed, 0)[0]) for seed in range(3500))
    chi_squared = sum((firsts[i] - 500) ** 2 / 500 for i in range(7))
    assert chi_squared < 22.5  # 0.1% of six degrees of freedom


def test_neighbours_are_spread() -> None:
    order = shuffled(np.arange(4096, dtype=np.uint64), 4096, 0, 0).astype(np.int64)
    correlation = np.corrcoef(order[:-1], order[1:])[0, 1]
    assert abs(correlation) < 0.06  # four standard deviations


def test_a_range_is_its_parts_and_runs_over_epochs() -> None:
    whole = samples(0, 35, 10, seed=5)
    assert whole == [one for p in range(35) for one in samples(p, p + 1, 10, seed=5)]
    for epoch in range(3):
        assert sorted(s.number for s in whole if s.epoch == epoch) == list(range(10))
    assert [s.epoch for s in whole[30:]] == [3] * 5


@pytest.mark.parametrize("world", [2, 4])
def test_global_batches_do_not_depend_on_ranks(world: int) -> None:
    alone = list(islice(iter(GlobalBatches(13, 8, 1, 0, 1, start=24)), 5))
    ranks = [list(islice(iter(GlobalBatches(13, 8, 1, rank, world, start=24)), 5)) for rank in range(world)]
    together = [[sample for rank in ranks for sample in rank[step]] for step in range(5)]
    assert together == alone


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 8, 9, 23])
def test_validation_visits_each_row_once_with_equal_ranks(count: int, world: int) -> None:
    ranks = [in_turn(count, 4, rank, world) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [s.number for batches in ranks for batch in batches for s in batch if s.number is not None]
    assert sorted(seen) == list(range(count))
