"""The texts a batch of rows writes, each until it ends."""

from __future__ import annotations

from torch import Tensor


class Texts:
    """What each of some rows has written before a token that ends it.

    Args:
        rows: how many. ends: tokens that end a text; none of them is kept.
    """

    def __init__(self, rows: int, ends: set[int]) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(rows)]
        self.done, self.ends = [False] * rows, ends

    def add(self, chosen: Tensor) -> bool:
        """Add a token (rows,) to each text that has not ended; return whether all have."""
        for row, token in enumerate(chosen.tolist()):
            self.done[row] = self.done[row] or token in self.ends
            if not self.done[row]:
                self.tokens[row].append(token)
        return all(self.done)
