"""Learning what people prefer, without a model of rewards: DPO (arXiv:2305.18290) and IPO (arXiv:2310.12036)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from mlplatform.context import Output
from mlplatform.data.collate import IGNORED, Row
from mlplatform.data.examples import Tools, stacked
from mlplatform.data.fields import Values, Words
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Reads, Record
from mlplatform.errors import CheckpointError, SpecError
from mlplatform.models.trained import adapter_off, frozen_digest
from mlplatform.processors.conversations import conversation, template_of
from mlplatform.registry import Fraction, PositiveFloat, block
from mlplatform.tasks.record_task import RecordTask
from mlplatform.tasks.task import Batch, check_fit

METRICS = ("accuracy", "margin", "chosen_reward", "rejected_reward", "likelier")


class Mean(MeanMetric):
    """A mean of which more is better."""

    higher_is_better = True


@block("task/preference")
class Preference(RecordTask):
    """Fields: `prompt` (or none), and two answers, `chosen` and `rejected`. The loss is a mean over pairs.

    An answer's reward is beta * (log p(answer | prompt) - log p_reference(answer | prompt)), and d the reward of the
    chosen one minus that of the rejected one. The reference is the model as training began: a copy that never trains,
    or the model itself with its adapter switched off.

    Metrics: the loss; accuracy, the share of pairs with d > 0; margin, the mean of d; the mean rewards; and likelier,
    the share of pairs whose chosen answer the model itself finds more probable.

    Args:
        beta: how dear it is to go away from the reference.
        loss: `sigmoid` is DPO's, -log sigmoid(d); `ipo` is (m - 1 / (2 beta))^2, with m the difference of the
            log-ratios per token.
        label_smoothing: the share of pairs that may be the wrong way round, of `sigmoid`.
        chat: write prompt and answers by the tokenizer's chat template, as a user's turn and the assistant's.
    """

    attention = "causal"
    head_task = "causal_lm"

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module | None,
        *,
        beta: PositiveFloat = 0.1,
        loss: Literal["sigmoid", "ipo"] = "sigmoid",
        label_smoothing: Fraction = 0.0,
        chat: bool = False,
    ) -> None:
        super().__init__(model)
        if loss == "ipo" and label_smoothing:
            raise SpecError(f"label_smoothing={label_smoothing} goes with loss=sigmoid; ipo bounds the margin itself")
        if label_smoothing >= 0.5:
            raise SpecError(f"label_smoothing={label_smoothing} turns the preference round; it must be below 0.5")
        if reference is None and not getattr(model, "adapted", False):
            raise SpecError("without a reference the model needs an adapter, which is switched off in its place")
        if reference is not None:
            check_fit(self, reference)
            reference.requires_grad_(False).eval()
        # A tuple keeps it out of this module: the reference is not saved, moved or trained with it.
        self._reference = (reference,)
        self.beta, self.loss, self.label_smoothing, self.chat = beta, loss, label_smoothing, chat
        self._begun = ""

    @property
    def reference(self) -> nn.Module | None:
        """The copy of the starting weights; None where the adapter is switched off instead."""
        return self._reference[0]

    def reads(self) -> Reads:
        return Reads({"prompt": Words(), "chosen": Words(), "rejected": Words()}, frozenset({"prompt"}), differ)

    def examples(self, tools: Tools) -> Pairs:
        tokenizer = tools.need("tokenizer", self.kind)
        return (ChatPairs if self.chat else Pairs)(tokenizer, tools.length)

    def prepare_measures(self, tools: Tools) -> None:
        self.measures = {name: Mean() for name in METRICS}

    def targets(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["labels"]) // 2, device=batch["labels"].device)

    def configure_model(self) -> None:
        """Keep this rank's part of the reference too."""
        super().configure_model()
        if self.reference is not None:
            self.share.divide(self.reference)

    def learned(self, batch: Batch) -> Output:
        return self.scored(batch)

    def scored(self, batch: Batch) -> Output:
        """Return `loss_sum`, `loss_count` (pairs), and of each pair its `rewards` (pairs, 2) and `logps` (pairs, 2)."""
        with torch.no_grad():
            start = self._started(batch)
        own = self._answers(self.model, batch)
        sizes = (batch["labels"][:, 1:] != IGNORED).sum(1).view(-1, 2)
        losses = pair_losses(own - start, sizes, self.beta, self.loss, self.label_smoothing)
        rewards = self.beta * (own - start).detach()
        count = torch.tensor(len(losses), device=losses.device)
        return Output(loss_sum=losses.sum(), loss_count=count, rewards=rewards, logps=own.detach())

    def _answers(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the log-probabilities of the answers (pairs, 2): chosen, rejected."""
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return answer_logps(logits, batch["labels"]).view(-1, 2)

    def _started(self, batch: Batch) -> Tensor:
        if self.reference is not None:
            with self.asked(self.reference):
                return self._answers(self.reference, batch)
        with adapter_off(self.model):
            return self._answers(self.model, batch)

    def observe(self, batch: Batch, out: Output) -> None:
        chosen, rejected = out.rewards.unbind(1)
        found = (chosen > rejected, chosen - rejected, chosen, rejected, out.logps[:, 0] > out.logps[:, 1])
        for name, values in zip(METRICS, found, strict=True):
            self.measures[name].update(values.float())

    def predictions(self, batch: Batch, out: Output) -> list[dict[str, Any]]:
        return [{"chosen_reward": a, "rejected_reward": b, "preferred": a > b} for a, b in out.rewards.tolist()]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.reference is not None:
            checkpoint["reference"] = self._begun = self._begun or frozen_digest(self.reference, self.share)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.reference is not None:
            self._begun = frozen_digest(self.reference, self.share)
            if checkpoint.get("reference") != self._begun:
                raise CheckpointError("the weights init_from names are not those this run's reference began with")


class Pairs:
    """Two rows for a pair, the chosen answer's and the rejected one's; `labels` are -100 but for the answer.

    A prompt that leaves too little room is cut at its beginning, to half of a row at most; then the answers are cut.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        self.tokenizer, self.length = tokenizer, length

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        prompt, answers = self._parts(record)
        room = max(self.length - max(map(len, answers)), self.length // 2)
        prompt = prompt[:1] + prompt[1:][-(room - 1) :]
        row: Arrays = {}
        for name, answer in zip(("chosen", "rejected"), answers, strict=True):
            ids = np.asarray([*prompt, *answer][: self.length])
            labels = np.where(np.arange(len(ids)) < len(prompt), IGNORED, ids)
            row |= {f"{name}_ids": ids, f"{name}_labels": labels}
        return row

    def _parts(self, record: Record) -> tuple[list[int], list[list[int]]]:
        """Return the tokens before the answers, and those of both."""
        start, end = self.tokenizer.frame
        before, *answers = self.tokenizer.plain([record.get("prompt") or "", record["chosen"], record["rejected"]])
        return [start, *before], [[*answer, end] for answer in answers]

    def __call__(self, rows: list[Row]) -> Batch:
        parted = [
            Row({key: row.arrays[f"{name}_{place}"] for key, place in (("input_ids", "ids"), ("labels", "labels"))},
                row.seed, row.epoch, row.number)
            for row in rows
            for name in ("chosen", "rejected")
        ]  # fmt: skip
        return stacked(parted, {"input_ids": self.tokenizer.filler, "labels": IGNORED})


class ChatPairs(Pairs):
    """The same as a user's turn and one of the assistant's, by the tokenizer's chat template.

    Raises:
        DataError: the tokenizer has none.
    """

    def __init__(self, tokenizer: Any, length: int) -> None:
        super().__init__(tokenizer, length)
        template_of(tokenizer)

    def _parts(self, record: Record) -> tuple[list[int], list[list[int]]]:
        asked = [{"role": "user", "content": record["prompt"]}] if record.get("prompt") else []
        prompt, answers = [], []
        for name in ("chosen", "rejected"):
            ids, [(start, end)] = conversation(self.tokenizer, [*asked, {"role": "assistant", "content": record[name]}])
            prompt = ids[:start]
            answers.append(ids[start:end])
        return prompt, answers


def differ(values: Values) -> None:
    """Raise ValueError for a pair that says nothing."""
    if values["chosen"] == values["rejected"]:
        raise ValueError("'chosen' and 'rejected' are the same text, so nothing is preferred")


def answer_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of log-probabilities of each row's labels (rows,) in fp32, from logits (rows, length, vocab)."""
    labels = labels[:, 1:]
    row, place = torch.nonzero(labels != IGNORED, as_tuple=True)
    each = -F.cross_entropy(logits[row, place].float(), labels[row, place], reduction="none")
    return torch.zeros(len(labels), device=logits.device).index_add(0, row, each)


def pair_losses(ratios: Tensor, sizes: Tensor, beta: float, loss: str, smoothing: float) -> Tensor:
    """Return the loss of each pair (pairs,).

    Args:
        ratios: log p - log p_reference of the chosen and the rejected answer, (pairs, 2). sizes: their tokens.
    """
    if loss == "ipo":
        each = ratios / sizes.clamp(min=1)
        return (each[:, 0] - each[:, 1] - 1 / (2 * beta)) ** 2
    d = beta * (ratios[:, 0] - ratios[:, 1])
    return -(1 - smoothing) * F.logsigmoid(d) - smoothing * F.logsigmoid(-d)
