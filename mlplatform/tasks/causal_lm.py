"""Causal language modelling: predict each next token."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from mlplatform.data.collate import Collator, NextToken
from mlplatform.registry import block
from mlplatform.tasks.task import Batch, Task, count_targets, loss_and_perplexity


@block("task/causal_lm")
class CausalLM(Task):
    """Each token is predicted from those before it in its document. Metrics: loss (nats), perplexity, bits per byte."""

    goes_on = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)

    def collator(self, tokenizer: Any, length: int) -> Collator:
        return NextToken(tokenizer.filler)

    def targets(self, batch: Batch) -> Tensor:
        return count_targets(batch["labels"][:, 1:])  # the head shifts: the first label of a row is never scored

    def metrics(self, sums: Tensor) -> dict[str, float]:
        total, _, size = sums.tolist()
        values = loss_and_perplexity(sums)
        if size > 0:
            values["validation/bits_per_byte"] = total / math.log(2) / size
        return values
