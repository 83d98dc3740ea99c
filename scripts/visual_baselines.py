"""What simple means say of a run's held-out images: the bar for captions and answers that a trained model writes.

    python scripts/visual_baselines.py OVERRIDES      (task=captioning or task=visual_question_answering)

The overrides are those of `mlplatform train`: `recipes=blip_captions`. Of all held-out records, by the task's scores:

    commonest            the commonest text of all
    for this question    the commonest answer to the same words
    nearest              the text of the nearest image to train on, in pixels; of those that were asked the same
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from held_out import call, records_of
from numpy.typing import NDArray

from mlplatform.data.records import Record
from mlplatform.errors import SpecError
from mlplatform.processors.image import pixels_of
from mlplatform.tasks.text_scores import SCORES, Score
from mlplatform.tasks.visual_question_answering import accuracy

FIELDS = {"captioning": ("", "text"), "visual_question_answering": ("question", "answer")}
"""Task -> the field that is asked, where there is one, and the field that is written."""


def commonest(texts: Sequence[str]) -> str:
    """Return the commonest text."""
    return Counter(texts).most_common(1)[0][0]


def nearest(train: NDArray[np.float32], held_out: NDArray[np.float32]) -> list[int]:
    """Return the number of the nearest row of `train` for each row (images, pixels)."""
    return ((train**2).sum(1) - 2 * held_out @ train.T).argmin(1).tolist()


def pixels(records: Sequence[Record]) -> NDArray[np.float32]:
    """Return the image of each record as a row, colours from 0 to 1."""
    shown = [pixels_of(record["image"], record.place, True) for record in records]
    return np.stack([np.asarray(one, np.float32).reshape(-1) for one in shown]) / np.float32(255)


def said(train: Sequence[Record], held_out: Sequence[Record], asked: str, field: str) -> dict[str, list[str]]:
    """Return what each means says of each held-out record.

    Args:
        asked: the field of the question, empty where nothing is asked. field: of the text that is written.
    """
    known, wanted = by_question(train, asked), by_question(held_out, asked)
    every = commonest([record[field][0] for record in train])
    usual, near = ([every] * len(held_out) for _ in range(2))
    for question, numbers in wanted.items():
        group = [train[number] for number in known.get(question, [])]
        if not group:
            continue
        texts = [record[field][0] for record in group]
        best = nearest(pixels(group), pixels([held_out[number] for number in numbers]))
        for number, place in zip(numbers, best, strict=True):
            usual[number], near[number] = commonest(texts), texts[place]
    found = {"commonest": [every] * len(held_out), "for this question": usual, "nearest": near}
    return found if asked else {name: texts for name, texts in found.items() if name != "for this question"}


def by_question(records: Sequence[Record], asked: str) -> dict[str, list[int]]:
    """Return question -> the numbers of the records that are asked it."""
    groups: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        groups.setdefault(record[asked] if asked else "", []).append(number)
    return groups


def report(overrides: Sequence[str], say: Callable[[str], None] = print) -> None:
    """Print the table."""
    config, _, train, held_out = records_of(overrides)
    task: dict[str, Any] = config["task"]
    if task["kind"] not in FIELDS:
        raise SpecError(f"task={task['kind']} writes nothing about an image that simple means could say")
    asked, field = FIELDS[task["kind"]]
    scores: dict[str, Score] = {SCORES[n][0].__name__: SCORES[n][0] for n in task.get("metrics", ())}
    scores = scores or {"accuracy": accuracy}
    wanted = [record[field] for record in held_out]
    say(f"{len(wanted)} records held out  " + "".join(f"{name:>13s}" for name in scores))
    for name, texts in said(list(train), list(held_out), asked, field).items():
        say(f"{name:24s}" + "".join(f"{score(texts, wanted):13.3f}" for score in scores.values()))


if __name__ == "__main__":
    sys.exit(call(report, sys.argv[1:]))
