"""Which samples make an optimizer step, and in which micro-batches: a pure function of the position the step begins at.

Lengths of rows are compared within windows of the order, so that no table of an epoch is needed: a window of some
thousand positions is put in order by length when a run first comes to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mlplatform.data.order import Order, Sample

Lengths = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Returns the length of each row of the given numbers."""
MEASURED = 16
"""Windows from which the number of steps in an epoch is estimated."""


class Step(NamedTuple):
    """One optimizer step of one rank: its micro-batches, and the position at which the next step begins."""

    batches: list[list[Sample]]
    after: int


class Plan(Protocol):
    """How an order is cut into steps."""

    def step(self, position: int, rank: int, world: int) -> Step:
        """Return one rank's part of the step that begins at a position."""
        ...

    def steps_of(self, count: int) -> float:
        """Return how many steps that many positions make."""
        ...


class Fixed:
    """As many sequences in every step: each rank has a contiguous part of them, and cuts it into micro-batches."""

    def __init__(self, order: Order, sequences: int, micro: int) -> None:
        self.order, self.sequences, self.micro = order, sequences, micro

    def step(self, position: int, rank: int, world: int) -> Step:
        share = self.sequences // world
        first = position + rank * share
        own = self.order.samples(first, first + share)
        return Step([own[i : i + self.micro] for i in range(0, share, self.micro)], position + self.sequences)

    def steps_of(self, count: int) -> float:
        return count / self.sequences


class ByLength:
    """An order in which `group` neighbours have like lengths.

    Each window of the order below is sorted by length and cut into groups, which are shuffled.
    """

    def __init__(self, order: Order, lengths: Lengths, group: int, window: int, seed: int) -> None:
        self.order, self.lengths, self.group, self.window, self.seed = order, lengths, group, window, seed
        self._sorted = lru_cache(maxsize=2)(self._window)

    def samples(self, start: int, stop: int) -> list[Sample]:
        found: list[Sample] = []
        while start < stop:
            number, first = divmod(start, self.window)
            end = min(stop, (number + 1) * self.window)
            found += self._sorted(number)[first : first + end - start]
            start = end
        return found

    def _window(self, number: int) -> list[Sample]:
        samples, _, ascending = by_length(self.order, self.lengths, number, self.window)
        groups = [ascending[i : i + self.group] for i in range(0, self.window, self.group)]
        mixed = np.random.default_rng((self.seed, number)).permutation(len(groups))
        return [samples[i] for chosen in mixed for i in groups[chosen]]


class Budget:
    """Micro-batches of at most `tokens` tokens, padding counted, and `batches` of them in every step.

    Each window of the order is sorted by length and filled into micro-batches; the largest are halved until they make
    whole steps, and they are shuffled. A position that is no step's beginning, as other settings may have left it, is
    taken for the next one that is.

    Args:
        most: rows of a micro-batch. batches: of a step, over all ranks.
        window: positions, a multiple of `batches`, so that whole steps can always be made.
    """

    def __init__(
        self, order: Order, lengths: Lengths, tokens: int, most: int, batches: int, window: int, seed: int
    ) -> None:
        self.order, self.lengths, self.tokens, self.most = order, lengths, tokens, most
        self.batches, self.window, self.seed = batches, window, seed
        self._planned = lru_cache(maxsize=2)(self._plan)

    def step(self, position: int, rank: int, world: int) -> Step:
        window, place = divmod(position, self.window)
        batches, begins = self._planned(window)
        found = int(np.searchsorted(begins, place))
        if found == len(begins):
            window, found = window + 1, 0
            batches, begins = self._planned(window)
        after = window * self.window + (begins[found + 1] if found + 1 < len(begins) else self.window)
        share = self.batches // world
        first = found * self.batches + rank * share
        return Step(batches[first : first + share], after)

    def steps_of(self, count: int) -> float:
        windows = min(MEASURED, -(-count // self.window))
        steps = sum(len(self._planned(number)[1]) for number in range(windows))
        return count * steps / (windows * self.window)

    def _plan(self, number: int) -> tuple[list[list[Sample]], list[int]]:
        """Return the micro-batches of a window, and the place in it at which each step begins."""
        samples, lengths, ascending = by_length(self.order, self.lengths, number, self.window)
        filled = list(self._filled(lengths, ascending))
        while len(filled) % self.batches:
            largest = max(range(len(filled)), key=lambda i: len(filled[i]))
            taken = filled.pop(largest)
            filled += [taken[: len(taken) // 2], taken[len(taken) // 2 :]]
        mixed = np.random.default_rng((self.seed, number)).permutation(len(filled))
        batches = [[samples[i] for i in filled[chosen]] for chosen in mixed]
        ends = np.cumsum([len(batch) for batch in batches])[self.batches - 1 :: self.batches]
        return batches, [0, *map(int, ends[:-1])]

    def _filled(self, lengths: NDArray[np.int64], ascending: list[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        for i in ascending:  # each is the longest of its micro-batch so far
            if batch and (len(batch) == self.most or (len(batch) + 1) * lengths[i] > self.tokens):
                yield batch
                batch = []
            batch.append(i)
        yield batch


def by_length(
    order: Order, lengths: Lengths, number: int, window: int
) -> tuple[list[Sample], NDArray[np.int64], list[int]]:
    """Return a window's samples, their lengths, and their places in ascending order of length."""
    samples = order.samples(number * window, (number + 1) * window)
    found = lengths(np.asarray([sample.number for sample in samples], np.int64))
    return samples, found, np.argsort(found, kind="stable").tolist()
