"""The order of training samples: a pure function of the seed and the position.

Positions run on from 0 without an end, and an order says which sample stands at each of them. Steps take the next
positions, whoever reads them (plan.py), so the only state of a run is how many positions were
consumed, and neither ranks nor workers appear in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6


class Sample(NamedTuple):
    """One sample of one epoch. `number` is None for a filler that only evens out the ranks."""

    epoch: int
    number: int | None


class Order(Protocol):
    """Which sample stands at each position."""

    def samples(self, start: int, stop: int) -> list[Sample]:
        """Return the samples at the positions start..stop-1."""
        ...


class Shuffled:
    """All samples 0 to count - 1 in each epoch, every epoch in another order: position p is the sample
    `shuffled(p % count)` of epoch `p // count`."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def samples(self, start: int, stop: int) -> list[Sample]:
        found: list[Sample] = []
        while start < stop:
            epoch, first = divmod(start, self.count)
            end = min(stop, (epoch + 1) * self.count)
            places = np.arange(first, first + end - start, dtype=np.uint64)
            found += [Sample(epoch, int(number)) for number in shuffled(places, self.count, self.seed, epoch)]
            start = end
        return found


class Mixed:
    """Parts by weights: of the first n positions a part has `n * weight`, to within the number of parts, for every n.

    The first part has the positions p at which `floor(p * weight)` is about to grow, and the others share what is left
    in the same way. So how many samples of a part come before a position is known without counting, and the order needs
    no state. Each part is shuffled by itself, in another order whenever it is exhausted: its epochs are its own.

    Args:
        counts: samples of each part; they are numbered through, part after part.
        weights: of each part, in proportion.
        seed: orders each part.
    """

    def __init__(self, counts: Sequence[int], weights: Sequence[Fraction], seed: int) -> None:
        self.parts = [Shuffled(count, seed + number) for number, count in enumerate(counts)]
        self.firsts = [0, *accumulate(counts)]
        left = list(accumulate(reversed(weights)))[::-1]
        self.shares = [weight / rest if rest else Fraction(0) for weight, rest in zip(weights, left, strict=True)]

    def samples(self, start: int, stop: int) -> list[Sample]:
        turns = [self.turn(position) for position in range(start, stop)]
        own: dict[int, Iterator[Sample]] = {}
        for part, place in turns:  # a part's turns follow one another
            if part not in own:
                last = place + sum(other == part for other, _ in turns)
                own[part] = iter(self._numbered(part, place, last))
        return [next(own[part]) for part, _ in turns]

    def _numbered(self, part: int, start: int, stop: int) -> list[Sample]:
        first = self.firsts[part]
        return [Sample(epoch, first + (number or 0)) for epoch, number in self.parts[part].samples(start, stop)]

    def turn(self, position: int) -> tuple[int, int]:
        """Return whose turn a position is, and how many turns that part had before."""
        for part, share in enumerate(self.shares):
            before = position * share.numerator // share.denominator
            if (position + 1) * share.numerator // share.denominator > before:
                return part, before
            position -= before
        raise AssertionError("the last part's share is 1")


def shuffled(places: NDArray[np.uint64], count: int, seed: int, epoch: int) -> NDArray[np.uint64]:
    """Map places 0..count-1 one to one onto 0..count-1, in an order fixed by (seed, epoch).

    A Feistel network over the next power of four, walked until it lands below `count`: any place can be asked for
    alone, so an epoch of 10^10 samples needs no table in memory (Black and Rogaway 2002, "Ciphers with arbitrary
    finite domains").
    """
    half = np.uint64(max(1, (max(count - 1, 1).bit_length() + 1) // 2))
    keys = np.random.SeedSequence((seed, epoch)).generate_state(ROUNDS, np.uint64).astype(np.uint64)
    found = _feistel(places, half, keys)
    while (outside := found >= count).any():
        found[outside] = _feistel(found[outside], half, keys)
    return found


def _feistel(places: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = places >> half, places & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def in_turn(count: int, micro: int, rank: int, world: int) -> list[list[Sample]]:
    """Return one rank's micro-batches of a pass in fixed order, for validation.

    All ranks get the same number of them (sharded models need every rank in every forward pass); fillers make up for
    what is missing, so the union over ranks is each sample once.
    """
    batches: list[list[Sample]] = []
    for start in range(0, count, micro * world):
        own: Any = range(start + rank * micro, start + (rank + 1) * micro)
        batches.append([Sample(0, number if number < count else None) for number in own])
    return batches
