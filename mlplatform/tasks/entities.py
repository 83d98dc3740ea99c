"""Scores of whole entities, whose words are tagged B-x, I-x and O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from mlplatform.data.collate import IGNORED

TAG = re.compile(r"O|[BIES]-.+")


def are_entities(names: Sequence[str]) -> bool:
    """Whether these classes are tags of entities."""
    return "O" in names and any(name.startswith("B-") for name in names) and all(map(TAG.fullmatch, names))


class EntityScores(Metric):
    """Micro-averaged precision, recall or F1 of entities: right when its class and both ends are (seqeval).

    Args:
        names: of the tags, in the order of their numbers. what: which score.
    """

    higher_is_better = True
    full_state_update = False
    right: Tensor
    said: Tensor
    true: Tensor

    def __init__(self, names: Sequence[str], what: Literal["f1", "precision", "recall"]) -> None:
        super().__init__()
        self.names, self.what = list(names), what
        for state in ("right", "said", "true"):
            self.add_state(state, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add rows of tag numbers (rows, length); only where `labels` is not -100 counts."""
        from seqeval.metrics.sequence_labeling import get_entities

        for row, label in zip(predictions, labels, strict=True):
            kept = label != IGNORED
            said, true = (set(get_entities([self.names[i] for i in part[kept].tolist()])) for part in (row, label))
            self.right += len(said & true)
            self.said += len(said)
            self.true += len(true)

    def compute(self) -> Tensor:
        """Return the score; 0 where nothing could be right."""
        below = {"precision": self.said, "recall": self.true, "f1": (self.said + self.true) / 2}[self.what]
        return self.right / below.clamp(min=1)
