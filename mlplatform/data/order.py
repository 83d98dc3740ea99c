"""The order of training samples: a pure function of the seed and the epoch.

Samples are numbered 0 to count - 1 within an epoch, and positions run on over all epochs: position p is the sample
`shuffled(p % count)` of epoch `p // count`. A global batch is the next `sequences` positions, whoever reads them, so
the only state of a run is how many positions were consumed, and neither ranks nor workers appear in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6


class Sample(NamedTuple):
    """One sample of one epoch. `number` is None for a filler that only evens out the ranks."""

    epoch: int
    number: int | None


def samples(start: int, stop: int, count: int, seed: int) -> list[Sample]:
    """Return the samples at the global positions start..stop-1. A range may cross from one epoch into the next."""
    found: list[Sample] = []
    while start < stop:
        epoch, first = divmod(start, count)
        end = min(stop, (epoch + 1) * count)
        places = np.arange(first, first + end - start, dtype=np.uint64)
        found += [Sample(epoch, int(number)) for number in shuffled(places, count, seed, epoch)]
        start = end
    return found


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


class GlobalBatches:
    """Endless: each item is what one rank reads in one optimizer step, a contiguous part of the global batch."""

    def __init__(self, count: int, sequences: int, seed: int, rank: int, world: int, start: int = 0) -> None:
        self.count, self.sequences, self.seed = count, sequences, seed
        self.rank, self.world, self.start = rank, world, start

    def __iter__(self) -> Iterator[list[Sample]]:
        share, position = self.sequences // self.world, self.start
        while True:
            first = position + self.rank * share
            yield samples(first, first + share, self.count, self.seed)
            position += self.sequences


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
