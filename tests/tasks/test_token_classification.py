"""Classes of words: labels on first pieces, entities as seqeval counts them, what can't be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from records import WORDS, Run, bert, tokenizer
from seqeval.metrics import f1_score, precision_score, recall_score

from mlplatform.errors import DataError, SpecError
from mlplatform.tasks.entities import EntityScores, are_entities
from mlplatform.tasks.token_classification import on_first_pieces

NAMES = ("O", "B-per", "I-per", "B-loc")


def rows(count: int = 8) -> list[dict[str, Any]]:
    made = []
    for i in range(count):
        words = [f"{WORDS[(i + j) % 40]}{WORDS[(3 * i + j) % 40]}" for j in range(2 + i % 5)]
        made.append({"tokens": words, "tags": [NAMES[(i + j) % 4] for j in range(len(words))]})
    return made


def run(folder: Path, given: Any = None, labels: int = 4, **options: Any) -> Run:
    head = {"kind": "token_classification", "labels": labels}
    tools = {"tokenizer": tokenizer(WORDS, 300)}
    return Run(folder, {"kind": "token_classification"}, bert(head), given or rows(), tools=tools, **options)


def test_each_word_has_one_label_at_its_first_piece(tmp_path: Path) -> None:
    made = run(tmp_path)
    batch, words = made.batch(), made.tools.tokenizer
    for number, ids, labels in zip(batch["numbers"].tolist(), batch["input_ids"], batch["labels"], strict=True):
        record = made.task.held_out[number]
        assert [made.tools.classes["tags"][i] for i in labels[labels != -100].tolist()] == record["tags"]
        starts = (labels != -100).nonzero().flatten().tolist()
        ends = [*starts[1:], int((ids != words.filler).sum()) - 1]
        assert [words.decode(ids[a:b]) for a, b in zip(starts, ends, strict=True)] == record["tokens"]
    assert any(b - a > 1 for a, b in zip(starts, ends, strict=True))


def test_first_pieces() -> None:
    assert on_first_pieces([None, 0, 0, 1, 2, 2, None], [7, 8, 9]) == [-100, 7, -100, 8, 9, -100, -100]
    assert on_first_pieces([None, 1, None, 1], [7, 8]) == [-100, 8, -100, 8]


def test_what_is_cut_off_has_no_label(tmp_path: Path) -> None:
    long = [{"tokens": WORDS[:30], "tags": [NAMES[i % 4] for i in range(30)]}] * 2
    made = run(tmp_path, long, length=16)
    batch = made.batch()
    assert batch["input_ids"].shape[1] == 16
    kept = int((batch["labels"][0] != -100).sum())
    assert 5 < kept < 15
    assert len(made.task.predictions(batch, made.task.scored(batch))[0]["tags"]) == kept


def test_entities_are_counted_as_seqeval_does() -> None:
    generator = torch.Generator().manual_seed(0)
    said, true = (torch.randint(4, (40, 12), generator=generator) for _ in range(2))
    true[torch.rand(true.shape, generator=generator) < 0.2] = -100
    scores = {what: EntityScores(NAMES, what) for what in ("f1", "precision", "recall")}  # type: ignore[arg-type]
    for part in range(0, 40, 7):
        for score in scores.values():
            score.update(said[part : part + 7], true[part : part + 7])
    kept = [
        [[NAMES[i] for i in row[label != -100].tolist()] for row, label in zip(which, true, strict=True)]
        for which in (true, said)
    ]
    expected = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    for what, function in expected.items():
        assert float(scores[what].compute()) == pytest.approx(function(*kept))
    assert float(scores["f1"].compute()) > 0.02


def test_which_classes_are_entities() -> None:
    assert are_entities(NAMES)
    assert not are_entities(("NOUN", "VERB"))
    assert not are_entities(("O", "NOUN"))


def test_entities_choose_the_best_and_words_are_measured_too(tmp_path: Path) -> None:
    made = run(tmp_path)
    found = made.measured()
    assert {"validation/accuracy", "validation/entity_f1", "validation/entity_recall"} < set(found)
    assert made.task.monitor == "validation/entity_f1"
    right, count = 0, 0
    for batch in made.data.val_dataloader():
        told = made.task.predictions(batch, made.task.scored(batch))
        for number, said in zip(batch["numbers"].tolist(), told, strict=True):
            tags = made.task.held_out[number]["tags"]
            right += sum(a == b for a, b in zip(tags, said["tags"], strict=True))
            count += len(tags)
    assert found["validation/accuracy"] == pytest.approx(right / count)


def test_words_and_tags_of_other_numbers_are_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: 'tokens' has 2 entries and 'tags' 1; each word has one"):
        run(tmp_path, [{"tokens": ["a", "b"], "tags": ["O"]}])


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        SpecError, match=r"scores of entities needs seqeval; install it with: pip install 'mlplatform\[metrics\]'"
    ):
        run(tmp_path)
