"""Where in a text the answer to a question stands, or that it has none. arXiv:1810.04805, section 4.2"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mlplatform.context import Output
from mlplatform.data.collate import Row
from mlplatform.data.examples import Tools, stacked, token_arrays
from mlplatform.data.fields import Field, Values, Words
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Reads, Record
from mlplatform.errors import DataError, SpecError
from mlplatform.registry import Natural, Positive, block
from mlplatform.tasks.record_task import RecordTask, has_segments
from mlplatform.tasks.seen import Seen
from mlplatform.tasks.task import Batch


class Span(NamedTuple):
    """A stretch of a context by its characters, and its score; (0, 0) is no answer."""

    start: int
    end: int
    score: float


@block("task/question_answering")
class QuestionAnswering(RecordTask):
    """Fields: `question`, `context`, and `answers` as SQuAD has them: {text: [...], answer_start: [...]}.

    A context longer than a row is read in windows that overlap. Metrics: exact match and F1 in percent (SQuAD's), each
    record counting once; where some have no answer also both kinds apart.

    Args:
        stride: tokens that two neighbouring windows share.
        longest: tokens of an answer, at most.
        candidates: answers a record's prediction lists.
        no_answer_bonus: how much better an answer's score must be than that of none.
    """

    monitor = "validation/f1"
    own_keys = (*RecordTask.own_keys, "spans")

    def __init__(
        self,
        model: nn.Module,
        *,
        stride: Natural = 32,
        longest: Positive = 30,
        candidates: Positive = 5,
        no_answer_bonus: float = 0.0,
    ) -> None:
        super().__init__(model)
        self.stride, self.longest, self.candidates, self.bonus = stride, longest, candidates, no_answer_bonus

    def reads(self) -> Reads:
        return Reads({"question": Words(), "context": Words(), "answers": Answers()}, check=answers_stand_there)

    def examples(self, tools: Tools) -> Questions:
        if self.stride >= tools.length // 2:
            raise SpecError(f"task.stride={self.stride} is half of batch.length={tools.length} or more; take less")
        tokenizer = tools.need("tokenizer", self.kind)
        return Questions(tokenizer, tools.length, self.stride, has_segments(self.model))

    def prepare_measures(self, tools: Tools) -> None:
        self.best = BestSpans()
        self.measures = {"answers": AnswerScores(self)}

    def targets(self, batch: Batch) -> Tensor:
        return torch.tensor(batch["labels"].numel(), device=batch["labels"].device)

    def begin_validation(self) -> None:
        super().begin_validation()
        self.best.process_group = self.share.group
        self.best.reset()

    def observe(self, batch: Batch, out: Output) -> None:
        spans = batch["spans"]  # (rows, length, 2): the characters each token of the context stands for
        starts, ends = out.start_logits.float(), out.end_logits.float()
        for row in range(len(spans)):
            found = best_spans(starts[row], ends[row], spans[row], self.longest, self.candidates)
            none = float(starts[row, 0] + ends[row, 0])
            record, _ = self.held_out.place(int(batch["numbers"][row]))
            self.best.update(record, [*found, Span(0, 0, none)])

    def answers(self) -> dict[int, list[tuple[str, float]]]:
        """Return record -> its candidates and their scores, best first; "" is no answer."""
        found: dict[int, list[tuple[str, float]]] = {}
        for record, spans in self.best.compute().items():
            none = min(span.score for span in spans if span.end == 0)  # it has none when no window shows one
            context = self.held_out.records[record]["context"]
            told = {context[s.start : s.end]: s.score for s in sorted(spans, key=lambda s: s.score) if s.end}
            told[""] = none + self.bonus
            found[record] = sorted(told.items(), key=lambda pair: -pair[1])[: self.candidates]
        return found

    def predictions(self, batch: Batch, out: Output) -> list[dict[str, Any]]:
        return []

    def whole_predictions(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for record, told in sorted(self.answers().items()):
            listed = [{"text": text, "score": score} for text, score in told]
            yield self.held_out.first(record), {"answer": told[0][0], "candidates": listed}


class Answers(Field):
    """SQuAD's answers: texts and the characters of the context they start at; empty lists for none."""

    name = "answers"

    def clean(self, value: Any, folder: Path) -> dict[str, list[Any]]:
        if not isinstance(value, Mapping) or not {"text", "answer_start"} <= set(value):
            raise ValueError("is no {text: [...], answer_start: [...]}, which answers are")
        texts, starts = list(value["text"]), list(value["answer_start"])
        if len(texts) != len(starts) or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"has {len(texts)} texts and {len(starts)} starts; each text that isn't empty has one")
        return {"text": texts, "answer_start": [int(start) for start in starts]}


def answers_stand_there(values: Values) -> None:
    """Raise ValueError when an answer is not what the context has where it is said to start."""
    answers, context = values["answers"], values["context"]
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        if start < 0 or context[start : start + len(text)] != text:
            there = context[max(start, 0) : max(start, 0) + len(text)]
            raise ValueError(f"'answers' has {text!r} at character {start}, where the context has {there!r}")


class Questions:
    """Rows of a question and a window of its context. Label: where the answer starts and ends, 0 where it isn't."""

    def __init__(self, tokenizer: Any, length: int, stride: int, segments: bool) -> None:
        self.tokenizer, self.length, self.stride, self.segments = tokenizer, length, stride, segments
        self._last = lru_cache(4)(self._windows)

    def parts(self, record: Record) -> int:
        return len(self._last(record["question"], record["context"], record.place))

    def part(self, record: Record, number: int, random: np.random.Generator | None) -> Arrays:
        made = self._last(record["question"], record["context"], record.place)[number]
        inside = np.asarray([part == 1 for part in made.sequence_ids])
        spans = np.where(inside[:, None], np.asarray(made.offsets), -1)
        return {**token_arrays(made, self.segments), "spans": spans, "labels": self._label(spans, record["answers"])}

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        return self.part(record, 0, random)

    def _windows(self, question: str, context: str, place: str) -> list[Any]:
        try:
            return self.tokenizer.windows(question, context, self.length, self.stride)
        except ValueError as error:
            raise DataError(f"{place}: {error}; set batch.length higher") from None

    @staticmethod
    def _label(spans: np.ndarray[Any, Any], answers: Mapping[str, list[Any]]) -> np.ndarray[Any, Any]:
        if answers["text"]:
            first, last = answers["answer_start"][0], answers["answer_start"][0] + len(answers["text"][0])
            starts = np.flatnonzero((spans[:, 0] <= first) & (first < spans[:, 1]))
            ends = np.flatnonzero((spans[:, 0] < last) & (last <= spans[:, 1]))
            if len(starts) and len(ends):
                return np.asarray([starts[0], ends[-1]])
        return np.zeros(2, dtype=np.int64)

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {"input_ids": self.tokenizer.filler, "token_type_ids": 0, "spans": -1})

    def __reduce__(self) -> tuple[Any, ...]:
        return Questions, (self.tokenizer, self.length, self.stride, self.segments)


def best_spans(starts: Tensor, ends: Tensor, spans: Tensor, longest: int, count: int) -> list[Span]:
    """Return the likeliest answers within one window, best first.

    Args:
        starts, ends: logits (length,). spans: (length, 2) characters, -1 outside the context.
        longest: tokens of an answer, at most. count: how many.
    """
    inside = spans[:, 1] > 0
    scores = starts[:, None] + ends[None, :]
    allowed = inside[:, None] & inside[None, :]
    allowed = allowed.triu() & ~allowed.triu(longest)
    scores = scores.masked_fill(~allowed, -torch.inf)
    best, where = scores.flatten().topk(min(count, scores.numel()))
    found = []
    for score, place in zip(best.tolist(), where.tolist(), strict=True):
        if score > -torch.inf:
            first, last = divmod(place, len(starts))
            found.append(Span(int(spans[first, 0]), int(spans[last, 1]), score))
    return found


class BestSpans(Seen):
    """Gathers the candidates of all windows over batches and ranks."""

    def update(self, record: int, spans: list[Span]) -> None:
        """Add the candidates of a window of a record."""
        self.add((record, spans))

    def compute(self) -> dict[int, list[Span]]:
        """Return the candidates of each record."""
        found: dict[int, list[Span]] = defaultdict(list)
        for record, spans in self.of_all_ranks():
            found[record] += spans
        return found


class AnswerScores:
    """SQuAD's exact match and F1 in percent; where some records have an answer and others none, also of both apart."""

    higher_is_better = True
    names = tuple(f"{score}{part}" for part in ("", "_answered", "_unanswered") for score in ("exact_match", "f1"))

    def __init__(self, task: QuestionAnswering) -> None:
        self._task = (task,)  # a tuple, so that the task is no child of its own measure

    def to(self, device: Any) -> AnswerScores:
        return self

    def reset(self) -> None:
        """The spans are forgotten by the task."""

    def compute(self) -> dict[str, float]:
        """Return the scores that there are records for."""
        from torchmetrics.text import SQuAD

        [task] = self._task
        parts = {"": SQuAD(), "_answered": SQuAD(), "_unanswered": SQuAD()}
        for record, told in task.answers().items():
            texts = task.held_out.records[record]["answers"]["text"]
            said = [{"prediction_text": told[0][0], "id": str(record)}]
            true = [{"answers": {"text": texts or [""], "answer_start": [0] * max(1, len(texts))}, "id": str(record)}]
            for part in ("", "_answered" if texts else "_unanswered"):
                parts[part].update(said, true)
        seen = [part for part, measure in parts.items() if measure.total]
        told_of = seen if len(seen) == 3 else seen[:1]
        scores = {part: parts[part].compute() for part in told_of}
        return {f"{name}{part}": float(score) for part, found in scores.items() for name, score in found.items()}
