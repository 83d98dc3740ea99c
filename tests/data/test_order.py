from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from mlplatform.data.order import Mixed, Order, Sample, Shuffled, in_turn, shuffled
from mlplatform.data.plan import Budget, ByLength, Fixed, Plan


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
    order = Shuffled(10, seed=5)
    whole = order.samples(0, 35)
    assert whole == [one for p in range(35) for one in order.samples(p, p + 1)]
    for epoch in range(3):
        assert sorted(s.number for s in whole if s.epoch == epoch) == list(range(10))
    assert [s.epoch for s in whole[30:]] == [3] * 5


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 8, 9, 23])
def test_validation_visits_each_row_once_with_equal_ranks(count: int, world: int) -> None:
    ranks = [in_turn(count, 4, rank, world) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [s.number for batches in ranks for batch in batches for s in batch if s.number is not None]
    assert sorted(seen) == list(range(count))


@pytest.mark.parametrize("weights", [[7, 3], [1, 1, 1], [0.5, 0.3, 0.15, 0.05], [2], [0.001, 0.999]])
def test_a_mixture_keeps_its_proportions_at_every_position(weights: list[float]) -> None:
    shares = [Fraction(str(weight)) for weight in weights]
    order = Mixed([11, 5, 40, 3][: len(weights)], shares, seed=2)
    seen = np.zeros(len(weights), int)
    for position in range(3000):
        part, place = order.turn(position)
        assert place == seen[part], "how many turns a part had before is what was counted"
        seen[part] += 1
        for share, count in zip(shares, seen, strict=True):
            assert abs(count - (position + 1) * share / sum(shares)) < len(weights)
    far = 10**12  # asked for at once, without the positions before
    assert order.turn(far)[1] == pytest.approx(far * float(shares[order.turn(far)[0]] / sum(shares)), abs=len(weights))


def test_a_part_of_a_mixture_is_reshuffled_when_it_is_exhausted() -> None:
    order = Mixed([100, 7], [Fraction(3, 4), Fraction(1, 4)], seed=5)
    found = order.samples(0, 400)
    small = [sample for sample in found if (sample.number or 0) >= 100]
    assert len(small) == 100
    epochs = [[s.number for s in small if s.epoch == epoch] for epoch in range(14)]
    assert all(sorted(epoch) == list(range(100, 107)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 10
    large = [sample for sample in found if (sample.number or 0) < 100]
    assert [s.epoch for s in large] == [0] * 100 + [1] * 100 + [2] * 100
    assert found == [one for p in range(400) for one in order.samples(p, p + 1)]
    assert Mixed([100, 7], [Fraction(3, 4), Fraction(1, 4)], seed=6).samples(0, 400) != found


LENGTHS = np.random.default_rng(0).integers(1, 60, 203)
SHUFFLED = Shuffled(203, seed=1)


def plans() -> dict[str, Plan]:
    return {
        "fixed": Fixed(SHUFFLED, 8, 3),
        "grouped": Fixed(ByLength(SHUFFLED, LENGTHS.__getitem__, 2, 64, seed=1), 8, 2),
        "budget": Budget(SHUFFLED, LENGTHS.__getitem__, 120, 10, 4, 96, seed=1),
    }


def taken(plan: Plan, world: int, steps: int, position: int = 0) -> tuple[list[list[Sample]], int]:
    """Return the samples of each step, ranks in order, and the position after them."""
    found = []
    for _ in range(steps):
        ranks = [plan.step(position, rank, world) for rank in range(world)]
        assert len({rank.after for rank in ranks}) == 1
        found.append([sample for rank in ranks for batch in rank.batches for sample in batch])
        position = ranks[0].after
    return found, position


@pytest.mark.parametrize("kind", list(plans()))
def test_steps_depend_on_the_position_alone(kind: str) -> None:
    alone, end = taken(plans()[kind], 1, 40)
    assert sum(map(len, alone)) == end > 203, "a position is a sequence, and this is into the second epoch"
    assert len({s.number for step in alone for s in step if s.epoch == 0}) > 190
    for world in (2, 4):
        assert taken(plans()[kind], world, 40) == (alone, end)
    first, position = taken(plans()[kind], 4, 13)
    assert first + taken(plans()[kind], 2, 27, position)[0] == alone


@pytest.mark.parametrize("kind", list(plans()))
def test_every_sample_of_an_epoch_comes_once(kind: str) -> None:
    plan, position, seen = plans()[kind], 0, Counter[Sample]()
    while position < 203 + 200:  # whole windows beyond the first epoch
        step = plan.step(position, 0, 1)
        seen.update(sample for batch in step.batches for sample in batch)
        position = step.after
    assert set(seen.values()) == {1}
    assert {s.number for s in seen if s.epoch == 0} == set(range(203))


def test_a_budget_is_kept_and_filled() -> None:
    plan, position, filled, count = plans()["budget"], 0, [], 0
    while position < 203 * 8:
        step = plan.step(position, 0, 1)
        assert len(step.batches) == 4
        for batch in step.batches:
            lengths = LENGTHS[[sample.number for sample in batch]]
            assert 1 <= len(batch) <= 10
            assert len(batch) * lengths.max() <= 120
            filled.append(lengths.sum() / 120)
        position, count = step.after, count + 1
    assert np.mean(filled) > 0.7
    assert plan.steps_of(position) == pytest.approx(count, rel=0.05)


def test_a_budget_of_one_row_a_pass_still_makes_whole_steps() -> None:
    lengths = np.full(37, 100)
    plan = Budget(Shuffled(37, seed=0), lengths.__getitem__, 120, 10, 4, 40, seed=0)
    steps, end = taken(plan, 2, 20)
    assert {len(step) for step in steps} == {4}
    assert end == 80


def test_a_position_within_a_step_goes_on_with_the_next_one() -> None:
    plan = plans()["budget"]
    first, second = plan.step(0, 0, 1).after, plan.step(plan.step(0, 0, 1).after, 0, 1)
    assert first > 2
    assert plan.step(first - 1, 0, 1) == second
    last = next(p for p in range(96, 0, -1) if plan.step(p, 0, 1).after == 96)
    assert plan.step(last + 1, 0, 1) == plan.step(96, 0, 1), "beyond the last step of a window"


def test_groups_have_like_lengths_and_are_mixed() -> None:
    def padding(order: Order) -> float:
        batches = [order.samples(start, start + 8) for start in range(0, 8 * 80, 8)]
        lengths = [LENGTHS[[sample.number for sample in batch]] for batch in batches]
        return 1 - sum(each.sum() for each in lengths) / sum(8 * each.max() for each in lengths)

    grouped = ByLength(SHUFFLED, LENGTHS.__getitem__, 8, 160, seed=1)
    assert padding(SHUFFLED) > 0.35
    assert padding(grouped) < 0.09
    means = [LENGTHS[[s.number for s in grouped.samples(p, p + 8)]].mean() for p in range(0, 160, 8)]
    assert abs(np.corrcoef(means, range(20))[0, 1]) < 0.6, "short and long ones come mixed"
