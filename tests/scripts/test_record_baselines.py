"""The baselines of labelled records: by hand where that is possible, and each from a run's own records."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mlplatform.data.records import Record
from mlplatform.errors import SpecError

SCRIPT = "record_baselines.py"


def records(*rows: dict[str, Any]) -> list[Record]:
    return [Record(row, row, f"row {number}") for number, row in enumerate(rows)]


def test_each_words_commonest_tag(script: ModuleType) -> None:
    train = records({"tokens": ["a", "b", "a", "a"], "tags": ["X", "Y", "Z", "X"]})
    held_out = records({"tokens": ["a", "b", "new", "a"], "tags": ["X", "Y", "X", "Z"]})
    found = script.of_tags(train, held_out)
    assert found == {"commonest tag": 0.5, "each word's commonest": 0.75}


def test_texts_told_by_their_words(script: ModuleType) -> None:
    words = {"good": ["fine", "lovely", "bright"], "bad": ["dull", "grim", "dreary"]}
    rows = [
        {"text": f"{word} film {i}", "label": name} for i in range(4) for name, said in words.items() for word in said
    ]
    found = script.of_texts(
        records(*rows), records({"text": "a lovely one", "label": "good"}, {"text": "so grim", "label": "bad"})
    )
    assert found == {"commonest class": 0.5, "TF-IDF and logistic regression": 1.0}


def test_images_told_by_their_pixels(script: ModuleType) -> None:
    random = np.random.default_rng(0)

    def picture(label: int) -> dict[str, Any]:
        pixels = random.integers(0, 40, (4, 4), dtype=np.uint8) + np.uint8(200 * label)
        return {"image": pixels, "label": str(label)}

    train, held_out = (records(*(picture(i % 2) for i in range(count))) for count in (20, 6))
    found = script.of_images(train, held_out)
    assert found == {"commonest class": 0.5, "logistic regression on pixels": 1.0, "three nearest neighbours": 1.0}


def test_pairs_found_by_regression(script: ModuleType) -> None:
    names = ("red", "green", "blue", "grey")

    def pair(number: int, shade: int) -> dict[str, Any]:
        pixels = np.zeros((2, 2, 4), np.uint8)[..., 0]
        pixels.flat[number] = 255 - shade
        return {"image": pixels, "text": [names[number]]}

    train = records(*(pair(i % 4, i) for i in range(200)))
    found = script.of_pairs(train, records(*(pair(i, 0) for i in range(4))))
    assert found["chance, recall at 1"] == 0.25
    assert found["ridge from pixels to words, recall at 1"] == 1.0


def test_it_reads_a_runs_own_records(script: ModuleType, tmp_path: Path) -> None:
    rows = [{"tokens": ["a", "b"], "tags": ["X", "Y"]} for _ in range(4)]
    for name in ("train", "held"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({**row, "n": name}) + "\n" for row in rows))
    places = [f"data.path={tmp_path / 'train.jsonl'}", f"data.validation={tmp_path / 'held.jsonl'}"]
    said: list[str] = []
    script.report(["recipes=portuguese_pos", *places], said.append)
    assert said[:2] == ["0.5000  commonest tag", "1.0000  each word's commonest"]


def test_runs_it_is_not_for_are_named(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SpecError, match=r"task=causal_lm learns from documents; scripts/baselines\.py is for them"):
        script.report([])
    assert script.call(script.report, ["model=lama"]) == 2
    assert capsys.readouterr().err.startswith("error: no model 'lama' (did you mean 'llama'?)")


def test_answers_without_a_model(script: ModuleType) -> None:
    def record(context: str, answer: str) -> dict[str, object]:
        found = {"text": [answer] if answer else [], "answer_start": [context.index(answer)] if answer else []}
        return {"question": "Which default?", "context": context, "answers": found}

    train = [record("a : int, default=None Then.", "None"), record("b : int, default=None", "None"), record("c", "")]
    held_out = [record("d : int, default=7 None", "7"), record("e : None", ""), record("f", "")]
    said = script.of_questions(train, held_out)
    exact = {name.partition(",")[0]: value for name, value in said.items() if name.endswith("exact match")}
    told = {"no answer": 200 / 3, "the commonest that stands there": 100 / 3, "what follows 'default='": 100.0}
    assert exact == pytest.approx(told)
