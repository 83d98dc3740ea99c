"""Measures over two ranks that saw unequally many records, or of which one got only fillers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import in_processes, ranks

from mlplatform.tasks.detection import Precision
from mlplatform.tasks.question_answering import BestSpans, Span
from mlplatform.tasks.retrieval import Recalls
from mlplatform.tasks.scores import of_classes, of_numbers
from mlplatform.tasks.text_scores import TextScore, exact_match

pytestmark = pytest.mark.distributed
RECORDS = 5


def pairs(number: int) -> tuple[Any, ...]:
    chance = torch.Generator().manual_seed(number)
    return torch.randn(2, 6, generator=chance), torch.randn(2, 6, generator=chance)


def boxes(number: int) -> tuple[Any, ...]:
    chance = torch.Generator().manual_seed(number)
    corner = torch.rand(number + 1, 2, generator=chance) * 50
    true = torch.cat((corner, corner + 5 + 20 * torch.rand(number + 1, 2, generator=chance)), 1)
    classes = torch.randint(0, 2, (number + 1,), generator=chance)
    found = true + 4 * torch.rand(number + 1, 4, generator=chance)
    scores = torch.rand(number + 1, generator=chance)
    return [{"boxes": found, "scores": scores, "labels": classes}], [{"boxes": true, "labels": classes}]


def words(number: int) -> tuple[Any, ...]:
    return ["a" * number, "ü"], ["a" * number, ["u", "ue"]]


def spans(number: int) -> tuple[Any, ...]:
    return number // 2, [Span(i, i + 1, 0.1 * i) for i in range(number)]


def numbers(number: int) -> tuple[Any, ...]:
    chance = torch.Generator().manual_seed(number)
    return torch.rand(3, generator=chance), torch.rand(3, generator=chance)


def classes(number: int) -> tuple[Any, ...]:
    chance = torch.Generator().manual_seed(number)
    return torch.randn(4, 3, generator=chance), torch.randint(0, 3, (4,), generator=chance)


MEASURES: dict[str, tuple[Callable[[], Any], Callable[[int], tuple[Any, ...]]]] = {
    "recalls": (Recalls, pairs),
    "precision": (Precision, boxes),
    "texts": (lambda: TextScore(exact_match), words),
    "spans": (BestSpans, spans),
    **{name: (lambda name=name: of_numbers()[name], numbers) for name in ("pearson", "spearman", "mse")},
    **{name: (lambda name=name: of_classes(3)[name], classes) for name in ("accuracy", "f1", "matthews")},
}


def measured(records: range) -> str:
    """Return what every measure says of some records."""
    told = {}
    for name, (make, record) in MEASURES.items():
        measure = make()
        for number in records:
            measure.update(*record(number))
        told[name] = measure.compute()
    return json.dumps(told, default=lambda value: round(float(value), 5))


def _measure(folder: Path, first: int) -> None:
    torch.distributed.init_process_group("gloo")
    rank = os.environ["RANK"]
    (folder / rank).write_text(measured(range(first) if rank == "0" else range(first, RECORDS)))


@pytest.mark.parametrize("first", [3, RECORDS])
def test_every_rank_says_what_one_process_would(tmp_path: Path, first: int) -> None:
    assert in_processes(_measure, [(tmp_path, first)] * 2, ranks(2)) == [0, 0]
    alone = measured(range(RECORDS))
    assert json.loads(alone)["precision"]["map"] not in (0, 1)
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == alone
