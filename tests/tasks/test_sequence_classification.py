"""Classes, sets of classes and numbers for texts: losses as transformers', metrics, pairs, what can't be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from records import WORDS, Run, bert, tokenizer
from transformers import BertConfig, BertForSequenceClassification

from mlplatform.errors import DataError, SpecError
from mlplatform.interop import config_json, save

TASK = {"kind": "sequence_classification"}
TEXTS = [" ".join(WORDS[i : i + 3 + i % 4]) for i in range(12)]
LABELS = {
    "single_label": [("yes", "no", "maybe")[i % 3] for i in range(12)],
    "multi_label": [[["a"], ["a", "b"], [], ["c"]][i % 4] for i in range(12)],
    "regression": [0.5 * i - 2 for i in range(12)],
}


def head(problem: str = "single_label", labels: int = 3) -> dict[str, Any]:
    return {
        "kind": "sequence_classification",
        "pool": "first",
        "activation": "tanh",
        "labels": labels,
        "problem": problem,
    }


def run(folder: Path, problem: str = "single_label", labels: int = 3, **options: Any) -> Run:
    rows = options.pop("rows", None) or [
        {"text": text, "label": label} for text, label in zip(TEXTS, LABELS[problem], strict=True)
    ]
    return Run(folder, TASK, bert(head(problem, labels)), rows, tools={"tokenizer": tokenizer()}, **options)


def theirs(made: Run, problem: str, labels: int) -> BertForSequenceClassification:
    """Return transformers' model with the weights of ours."""
    config = BertConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        num_labels=labels,
        problem_type={"single_label": "single_label_classification", "multi_label": "multi_label_classification"}.get(
            problem, "regression"
        ),
    )
    other = BertForSequenceClassification(config).eval()
    names = {
        "trunk.input.table": "bert.embeddings.word_embeddings",
        "trunk.input.positions.table": "bert.embeddings.position_embeddings",
        "trunk.input.segments": "bert.embeddings.token_type_embeddings",
        "trunk.input.norm": "bert.embeddings.LayerNorm",
        "head.dense": "bert.pooler.dense",
        "head.out": "classifier",
    }
    for i in range(2):
        ours, layer = f"trunk.layers.{i}", f"bert.encoder.layer.{i}"
        parts = {"q": "self.query", "k": "self.key", "v": "self.value", "out": "output.dense"}
        names |= {f"{ours}.attention.{a}": f"{layer}.attention.{b}" for a, b in parts.items()}
        names |= {
            f"{ours}.attention_norm": f"{layer}.attention.output.LayerNorm",
            f"{ours}.mlp.up": f"{layer}.intermediate.dense",
            f"{ours}.mlp.down": f"{layer}.output.dense",
            f"{ours}.mlp_norm": f"{layer}.output.LayerNorm",
        }
    state = {}
    for name, tensor in made.model.state_dict().items():
        module, _, kind = name.rpartition(".")
        state[f"{names[module]}.{kind}"] = tensor
    missing, extra = other.load_state_dict(state, strict=False)
    assert not extra
    assert all("position_ids" in name for name in missing)
    return other


@pytest.mark.parametrize(("problem", "labels"), [("single_label", 3), ("multi_label", 3), ("regression", 1)])
def test_the_loss_is_transformers(tmp_path: Path, problem: str, labels: int) -> None:
    made = run(tmp_path, problem, labels)
    batch = made.batch()
    given = {name: tensor for name, tensor in batch.items() if name != "numbers"}
    out = made.model.eval()(**given)
    other = theirs(made, problem, labels)
    told = {**given, "labels": given["labels"].float() if problem == "multi_label" else given["labels"]}
    with torch.no_grad():
        expected = other(**told)
    torch.testing.assert_close(out.logits, expected.logits, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(out.loss, expected.loss, atol=1e-6, rtol=1e-5)
    assert int(made.task.targets(batch)) == int(out.loss_count)


def test_the_metrics_are_those_of_the_predictions(tmp_path: Path) -> None:
    made = run(tmp_path)
    found = made.measured()
    right = 0
    for batch in made.data.val_dataloader():
        said = made.task.predictions(batch, made.task.scored(batch))
        for number, one in zip(batch["numbers"].tolist(), said, strict=True):
            right += one["label"] == made.task.held_out[number]["label"]
            assert 1 / 3 < one["score"] <= 1
    assert found["validation/accuracy"] == pytest.approx(right / len(TEXTS))
    assert set(found) == {f"validation/{name}" for name in ("loss", "accuracy", "f1", "matthews")}
    assert made.task.higher_is_better("validation/accuracy")
    assert not made.task.higher_is_better("validation/loss")


def test_sets_of_classes_and_numbers_have_metrics_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    (tmp_path / "numbers").mkdir()
    made = run(tmp_path / "sets", "multi_label")
    assert {"validation/f1", "validation/f1_micro", "validation/accuracy"} < set(made.measured())
    batch = made.batch()
    assert batch["labels"].tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert len(made.task.predictions(batch, made.task.scored(batch))[0]["scores"]) == 3
    made = run(tmp_path / "numbers", "regression", 1)
    assert {"validation/pearson", "validation/spearman", "validation/mse"} < set(made.measured())
    batch = made.batch()
    assert batch["labels"].tolist() == [-2.0, -1.5, -1.0, -0.5]
    assert isinstance(made.task.predictions(batch, made.task.scored(batch))[0]["label"], float)


def test_the_longer_text_of_a_pair_is_cut_first(tmp_path: Path) -> None:
    rows = [{"text": " ".join(WORDS[:20]), "pair": "da de", "label": label} for label in ("x", "y")]
    made = run(tmp_path, labels=2, rows=rows, length=16)
    batch, words = made.batch(), made.tools.tokenizer
    assert batch["input_ids"].shape == (2, 16)
    ids, kinds = batch["input_ids"][0], batch["token_type_ids"][0]
    assert words.decode(ids[kinds == 1][:-1]) == "da de"
    assert int((kinds == 0).sum()) > 8
    assert words.decode(ids[kinds == 0]).startswith("ba be")


def test_special_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    made = run(tmp_path, labels=2, rows=[{"text": "[MASK] ba", "label": str(i)} for i in range(2)])
    assert made.tools.tokenizer.mask not in made.batch()["input_ids"]


def test_rows_are_padded_to_the_longest(tmp_path: Path) -> None:
    batch = run(tmp_path).batch()
    lengths = batch["attention_mask"].sum(1)
    assert int(lengths.max()) == batch["input_ids"].shape[1]
    assert len(set(lengths.tolist())) > 1


def test_a_head_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"5 outputs, and the data 3 classes \(maybe, no, yes\); set model\.head\.labels=3"
    ):
        run(tmp_path, labels=5)


def test_a_row_without_a_label_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl: line 2: no column 'label' \(did you mean 'lable'\?\); it has"):
        run(tmp_path, rows=[{"text": "a", "label": "x"}, {"text": "b", "lable": "y"}])
    with pytest.raises(DataError, match=r"train\.jsonl: line 1: 'label' is a text, and a list of classes is needed"):
        run(tmp_path, "multi_label", rows=[{"text": "a", "label": "x"}])


def test_a_missing_tokenizer_is_said(tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS["single_label"], strict=True)]
    with pytest.raises(DataError, match="task=sequence_classification needs a tokenizer, and the run has none"):
        Run(tmp_path, TASK, bert(head()), rows)


def test_the_names_of_the_classes_go_into_the_config(tmp_path: Path) -> None:
    from mlplatform.cli.compose import compose_model

    changes = ["head=sequence_classification", "heads.sequence_classification.labels=3", "trunk.input.vocab=400"]
    spec = compose_model("bert_tiny", changes).check().config
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS["single_label"], strict=True)]
    made = Run(tmp_path, TASK, spec, rows, tools={"tokenizer": tokenizer()})
    assert config_json(made.model)["id2label"] == {"0": "maybe", "1": "no", "2": "yes"}
    save(made.model, tmp_path / "saved")
    loaded = BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert loaded.config.label2id == {"maybe": 0, "no": 1, "yes": 2}
