"""One loss normalisation: the gradient does not depend on how tokens are laid out. And which models fit a task."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mlplatform.data.collate import NextToken, Row
from mlplatform.data.packing import rows
from mlplatform.errors import SpecError
from mlplatform.models import build
from mlplatform.registry import Spec, merge
from mlplatform.tasks.task import Task
from mlplatform.training.engine import fit
from mlplatform.training.progress import Quiet

Batch = dict[str, Tensor]
LLAMA: dict[str, Any] = {
    "kind": "single_tower",
    "trunk": {
        "kind": "transformer",
        "dim": 32,
        "depth": 2,
        "context_length": 256,
        "norm": {"kind": "rms_norm"},
        "input": {"kind": "tokens", "vocab": 90},
        "layer": {
            "kind": "pre_norm",
            "attention": {"kind": "attention", "heads": 2, "rope": {"kind": "rope"}},
            "mlp": {"kind": "gated_mlp", "width": 48, "activation": "silu"},
        },
        "final_norm": True,
    },
    "head": {"kind": "lm_head"},
    "init": {"kind": "normal", "std": 0.2},
}
BERT = merge(
    LLAMA,
    {"trunk": {"layer": {"attention": {"mask": "full"}}}, "head": {"kind": "masked_lm_head", "activation": "gelu"}},
)
TASKS = {"causal_lm": LLAMA, "masked_lm": BERT}


def task(kind: str, model: dict[str, Any], **options: Any) -> Task:
    return Spec.of({"kind": kind, **options}, "task", "task").build(model=build(model, seed=3))


class Fixed:
    """Data that is the same step for ever."""

    steps_per_epoch = 1.0

    class material:
        name = "made"

    class shape:
        sequences, length, timeout, workers = 1, 256, 60, 0

    def __init__(self, step: list[Batch]) -> None:
        self.step = step

    def train_dataloader(self) -> Any:
        return self

    def val_dataloader(self) -> Any:
        return []

    def __iter__(self) -> Any:
        return itertools.repeat(self.step)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def gradient(kind: str, step: list[Batch]) -> tuple[dict[str, Tensor], Any]:
    """Return the gradient of one optimizer step, as plain SGD of rate 1 takes it, and the step's figures."""
    trained = task(kind, TASKS[kind])
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    fit(
        trained,
        Fixed(step),
        trainer=Spec.of({"kind": "trainer", "max": "1 steps", "clip_norm": None, "accelerator": "cpu"}, "trainer"),
        optimizer=Spec.of({"_target_": "torch.optim.SGD", "lr": 1.0}, "optimizer"),
        schedule=Spec.of({"kind": "constant"}, "schedule"),
        strategy=Spec.of({"kind": "single"}, "strategy"),
        show=Quiet(),
    )
    return {name: before[name] - tensor for name, tensor in trained.model.state_dict().items()}, trained.figures


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        largest = tensor.abs().max().item()
        assert largest > 1e-4, name
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=2e-5 * largest, msg=name)


class Tokens:
    """Documents of 3 to 41 tokens, as the data floor stores them."""

    split = "train"

    def __init__(self) -> None:
        random = np.random.default_rng(4)
        documents = [np.r_[1, random.integers(5, 90, size), 2] for size in (1, 17, 39, 4, 28, 11)]
        self.all = np.concatenate(documents)
        self.offsets = np.cumsum([0, *(len(document) for document in documents)])
        self.documents, self.bytes = len(documents), 1

    def __len__(self) -> int:
        return len(self.all)

    def read(self, start: int, stop: int) -> Any:
        return self.all[start:stop].astype(np.int64)


def laid_out(layout: str, length: int) -> list[Batch]:
    """Return each row of the documents as a batch of one."""
    split = rows(Tokens(), layout, length, 1, 0)  # type: ignore[arg-type]
    return [NextToken(0)([Row(split.row(number, 0, 0), 0, 0, number)]) for number in range(len(split))]


def stacked(batches: list[Batch], size: int) -> list[Batch]:
    """Join batches of one to micro-batches, padded on the right."""
    joined = []
    for start in range(0, len(batches), size):
        part = batches[start : start + size]
        longest = max(batch["input_ids"].shape[1] for batch in part)
        blank = {"labels": -100}
        padded = [
            {
                name: torch.nn.functional.pad(tensor, (0, longest - tensor.shape[1]), value=blank.get(name, 0))
                for name, tensor in batch.items()
            }
            for batch in part
        ]
        joined.append({name: torch.cat([batch[name] for batch in padded]) for name in padded[0]})
    return joined


def test_packed_and_padded_and_accumulated_steps_have_one_gradient() -> None:
    expected, figures = gradient("causal_lm", laid_out("padded", 64))  # one document at a time, six micro-batches
    assert figures.targets == 112 - 6  # every token but the first of each document
    assert figures.tokens == 112
    for step in (stacked(laid_out("padded", 64), 6), stacked(laid_out("padded", 64), 4), laid_out("packed", 112)):
        found, same = gradient("causal_lm", step)
        assert (same.targets, same.tokens) == (figures.targets, figures.tokens)
        assert same.loss == pytest.approx(figures.loss, rel=1e-6)
        assert same.grad_norm == pytest.approx(figures.grad_norm, rel=1e-5)
        assert_same(found, expected)


def test_the_mean_of_micro_batch_means_is_another_gradient() -> None:
    """The control: micro-batches here have 2 to 40 targets, so dividing each by its own would show."""
    step = laid_out("padded", 64)
    expected, _ = gradient("causal_lm", step)
    model = build(LLAMA, seed=3)
    for batch in step:
        (model(**batch, logits=False).loss / len(step)).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not torch.allclose(found["head.out.weight"], expected["head.out.weight"], rtol=1e-2)  # type: ignore[arg-type]


def test_masked_targets_are_counted_over_the_whole_step() -> None:
    random = np.random.default_rng(0)
    batches = []
    for targets in (1, 9, 4):
        ids = torch.from_numpy(random.integers(5, 90, (1, 24)))
        labels = torch.full_like(ids, -100)
        labels[0, :targets] = ids[0, :targets]
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    expected, figures = gradient("masked_lm", batches)
    assert figures.targets == 14
    found, same = gradient("masked_lm", stacked(batches, 3))
    assert same.loss == pytest.approx(figures.loss, rel=1e-6)
    assert_same(found, expected)


@pytest.mark.parametrize("kind", ["causal_lm", "masked_lm"])
def test_the_counted_targets_are_those_the_model_scores(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 90, (3, 20), generator=generator)
    labels = torch.where(torch.rand(3, 20, generator=generator) < 0.5, ids, -100)
    trained = task(kind, TASKS[kind])
    out = trained.model(input_ids=ids, labels=labels, logits=False)
    assert trained.targets({"labels": labels}) == out.loss_count


# ---- which models fit ----

CLASSIFIER = merge(LLAMA, {"head": {"kind": "sequence_classification", "pool": "last", "activation": None}})


@pytest.mark.parametrize(
    ("kind", "model", "says"),
    [
        (
            "masked_lm",
            LLAMA,
            r"task=masked_lm does not fit this single_tower \(head lm_head, causal attention\): causal_lm fits it",
        ),
        (
            "causal_lm",
            BERT,
            r"task=causal_lm does not fit .*\(head masked_lm_head, full attention\): masked_lm fits it",
        ),
        (
            "causal_lm",
            CLASSIFIER,
            r"\(head sequence_classification, causal .*\): sequence_classification fits it",
        ),
        ("causal_lm", {**LLAMA, "head": None}, r"\(head none, causal attention\)"),
        (
            "causal_lm",
            merge(LLAMA, {"trunk": {"layer": {"attention": {"mask": "full"}}}}),
            r"it needs causal attention; set model\.trunk\.layer\.attention\.mask",
        ),
        (
            "causal_lm",
            merge(LLAMA, {"trunk": {"exceptions": [{"layers": "-1:", "attention": {"mask": "full"}}]}}),
            r"\(head lm_head, causal and full attention\): it needs causal attention",
        ),
        ("masked_lm", merge(LLAMA, {"head": {"kind": "masked_lm_head"}}), r"it needs full attention"),
    ],
)
def test_a_wrong_pairing_names_both_and_what_fits(kind: str, model: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        Spec.of({"kind": kind}, "task", "task").build(model=build(model, device="meta"))
    assert str(caught.value).startswith("task: ")
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_named(tmp_path: Path) -> None:
    from mlplatform.errors import CheckpointError
    from mlplatform.tasks.task import check_weights

    own = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(1)}
    check_weights(own, own)
    given = {"a": torch.zeros(2), "b": torch.zeros(4), "d": torch.zeros(1)}
    with pytest.raises(
        CheckpointError, match=r"c is missing, d is not in the model, b is \(4,\) and the model's \(3,\)"
    ):
        check_weights(given, own)
