"""Answers within a text: windows that cover it, labels, the best spans, no answer, SQuAD's scores."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from records import WORDS, Run, bert, tokenizer

from mlplatform.context import Output
from mlplatform.data.order import Shuffled
from mlplatform.errors import DataError, SpecError
from mlplatform.tasks.question_answering import Span, best_spans

LONG = " ".join(WORDS[:40])


def row(context: str, answer: str | None, question: str = "ba be?") -> dict[str, Any]:
    found: dict[str, Any] = {"text": [], "answer_start": []}
    if answer is not None:
        found = {"text": [answer], "answer_start": [context.index(answer)]}
    return {"question": question, "context": context, "answers": found}


ROWS = [row(LONG, "ki ko"), row("da de di do", "de di"), row("na ne ni", None), row(LONG, "da"), row("ga ge gi", "gi")]


def run(folder: Path, rows: list[dict[str, Any]] = ROWS, length: int = 24, **task: Any) -> Run:
    task = {"kind": "question_answering", "stride": 6, **task}
    return Run(folder, task, bert({"kind": "span"}), rows, tools={"tokenizer": tokenizer()}, length=length)


def test_windows_cover_the_context_and_overlap(tmp_path: Path) -> None:
    made = run(tmp_path)
    rows = made.rows("validation")
    assert len(rows) > len(ROWS)
    assert [rows.place(i)[0] for i in range(len(rows))] == sorted(rows.place(i)[0] for i in range(len(rows)))
    first = [rows.row(i, 0, 0)["spans"] for i in range(len(rows)) if rows.place(i)[0] == 0]
    covered = [set(map(tuple, spans[spans[:, 1] > 0].tolist())) for spans in first]
    whole = made.tools.tokenizer.offsets(LONG, specials=False)
    assert set().union(*covered) == set(whole)
    assert all(len(a & b) == 6 for a, b in itertools.pairwise(covered))


def test_the_label_is_where_the_answer_stands_or_the_first_token(tmp_path: Path) -> None:
    made = run(tmp_path)
    rows, seen = made.rows("validation"), 0
    for i in range(len(rows)):
        record, arrays = rows[i], rows.row(i, 0, 0)
        start, end = arrays["labels"]
        if start == 0:
            assert end == 0
            continue
        first, last = arrays["spans"][start][0], arrays["spans"][end][1]
        assert record["context"][first:last].strip() == record["answers"]["text"][0]
        seen += 1
    assert seen >= 4  # one in an overlap is in both windows


def test_the_best_spans_are_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(1)
    starts, ends = torch.randn(2, 9, generator=generator)
    spans = torch.tensor([[-1, -1]] * 2 + [[3 * i, 3 * i + 2] for i in range(6)] + [[-1, -1]])
    every = [
        Span(3 * (i - 2), 3 * (j - 2) + 2, float(starts[i] + ends[j]))
        for i in range(2, 8)
        for j in range(i, min(i + 3, 8))
    ]
    expected = sorted(every, key=lambda span: -span.score)[:4]
    assert best_spans(starts, ends, spans, longest=3, count=4) == [pytest.approx(span) for span in expected]


def oracle(batch: dict[str, torch.Tensor]) -> Output:
    """Return logits that point at the labels."""
    logits = torch.zeros(2, *batch["input_ids"].shape)
    for row, (start, end) in enumerate(batch["labels"].tolist()):
        logits[0, row, start] = logits[1, row, end] = 8.0
    return Output(start_logits=logits[0], end_logits=logits[1], loss_sum=torch.zeros(()), loss_count=torch.ones(()))


def test_an_oracle_is_right_everywhere(tmp_path: Path) -> None:
    made = run(tmp_path)
    made.task.scored = oracle
    found = made.measured()
    assert found["validation/exact_match"] == found["validation/f1"] == 100
    assert found["validation/exact_match_unanswered"] == found["validation/f1_answered"] == 100
    told = dict(made.task.whole_predictions())
    assert len(told) == len(ROWS)
    assert [one["answer"].strip() for one in told.values()] == ["ki ko", "de di", "", "da", "gi"]
    assert len(told[0 if 0 in told else min(told)]["candidates"]) == 5


def test_a_bonus_for_no_answer_says_there_is_none(tmp_path: Path) -> None:
    made = run(tmp_path, no_answer_bonus=1000.0)
    made.task.scored = oracle
    found = made.measured()
    assert found["validation/exact_match_answered"] == 0
    assert found["validation/exact_match_unanswered"] == 100
    assert found["validation/exact_match"] == 20


def test_every_row_counts_in_training_and_a_position_resumes(tmp_path: Path) -> None:
    made = run(tmp_path)
    count = len(made.rows("train"))
    assert made.data.samples_per_epoch == count
    seen = [sample.number for sample in Shuffled(count, 0).samples(0, count)]
    assert set(seen) == set(range(count))


def test_an_answer_that_stands_elsewhere_is_a_bad_row(tmp_path: Path) -> None:
    bad = {**row("da de di", "de"), "answers": {"text": ["de"], "answer_start": [4]}}
    with pytest.raises(DataError, match=r"line 1: 'answers' has 'de' at character 4, where the context has 'e '"):
        run(tmp_path, [bad])
    with pytest.raises(DataError, match=r"'answers' is no \{text"):
        run(tmp_path, [{**bad, "answers": "de"}])
    with pytest.raises(DataError, match="has 1 texts and 0 starts"):
        run(tmp_path, [{**bad, "answers": {"text": ["de"], "answer_start": []}}])


def test_a_question_that_leaves_no_room_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl: line 1: the question takes \d+ of 24 tokens, and"):
        run(tmp_path, [row("da de", "da", question=LONG)])
    with pytest.raises(SpecError, match=r"task\.stride=12 is half of batch\.length=24 or more"):
        run(tmp_path, stride=12)
