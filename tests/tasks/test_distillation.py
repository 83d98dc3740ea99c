"""Distillation: the three terms by their formulas, one normalisation, a teacher that stays, what can't be."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlplatform.errors import SpecError
from mlplatform.models import build
from mlplatform.registry import Spec, merge
from mlplatform.training.engine import fit
from mlplatform.training.progress import Quiet

Batch = dict[str, Tensor]
STUDENT: dict[str, Any] = {
    "kind": "single_tower",
    "trunk": {
        "kind": "transformer",
        "dim": 24,
        "depth": 2,
        "context_length": 64,
        "norm": {"kind": "layer_norm"},
        "input": {"kind": "tokens", "vocab": 60, "positions": {"kind": "learned"}, "norm": True},
        "layer": {
            "kind": "post_norm",
            "attention": {"kind": "attention", "heads": 2, "mask": "full", "bias": True},
            "mlp": {"kind": "mlp", "width": 32},
        },
    },
    "head": {"kind": "masked_lm_head"},
    "init": {"kind": "normal", "std": 0.2},
}
TEACHER = merge(STUDENT, {"trunk": {"depth": 5, "layer": {"dropout": 0.3}}})
CAUSAL = {"trunk": {"layer": {"attention": {"mask": "causal"}}}, "head": {"kind": "lm_head"}}


def task(student: dict[str, Any] = STUDENT, teacher: dict[str, Any] = TEACHER, **options: Any) -> Any:
    spec = {"kind": "distillation", "objective": {"kind": "masked_lm"}, **options}
    models = build(student, seed=3), build(teacher, seed=4)
    return Spec.of(spec, "task", "task").build(model=models[0], teacher=models[1])


def batches() -> list[Batch]:
    """Return micro-batches of unlike numbers of targets and tokens."""
    random = np.random.default_rng(0)
    made = []
    for length, targets in ((9, 1), (21, 6), (14, 2)):
        ids = torch.from_numpy(random.integers(5, 60, (2, length)))
        mask = torch.ones_like(ids)
        mask[1, length // 2 :] = 0
        labels = torch.full_like(ids, -100)
        labels[0, :targets] = ids[0, :targets]
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def expected(student: nn.Module, teacher: nn.Module, layers: list[tuple[int, int]]) -> Tensor:
    """DistilBERT's loss as its authors' script has it, over all micro-batches as one: 2 hard + 5 soft + cosine."""
    teacher.eval()
    rows: dict[str, list[Tensor]] = {name: [] for name in ("s", "t", "target", "hidden", "other", "labels")}
    for batch in batches():
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        ours = student(**given, output_hidden_states=True)
        with torch.no_grad():
            theirs = teacher(**given, output_hidden_states=True)
        real = batch["attention_mask"].bool()
        rows["s"].append(ours.logits[real])
        rows["t"].append(theirs.logits[real])
        rows["labels"].append(batch["labels"][real])
        rows["hidden"] += [ours.hidden_states[one][real] for one, _ in layers]
        rows["other"] += [theirs.hidden_states[two][real] for _, two in layers]
    s, t, labels, hidden, other = (torch.cat(rows[n]) for n in ("s", "t", "labels", "hidden", "other"))
    hard = nn.CrossEntropyLoss(ignore_index=-100)(s, labels)
    soft = nn.KLDivLoss(reduction="batchmean")((s / 2).log_softmax(-1), (t / 2).softmax(-1)) * 2**2
    cosine = nn.CosineEmbeddingLoss(reduction="mean")(hidden, other, torch.ones(len(hidden)))
    return 2 * hard + 5 * soft + cosine


class Fixed:
    """Data that is the same step for ever."""

    steps_per_epoch = 1.0

    class material:
        name = "made"

    class shape:
        sequences, length, timeout, workers = 1, 64, 60, 0

    def train_dataloader(self) -> Any:
        return self

    def val_dataloader(self) -> Any:
        return []

    def __iter__(self) -> Any:
        return itertools.repeat(batches())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def one_step(trained: Any, steps: int = 1, rate: float = 1.0) -> None:
    fit(
        trained,
        Fixed(),
        trainer=Spec.of(
            {"kind": "trainer", "max": f"{steps} steps", "clip_norm": None, "accelerator": "cpu"}, "trainer"
        ),
        optimizer=Spec.of({"_target_": "torch.optim.SGD", "lr": rate}, "optimizer"),
        schedule=Spec.of({"kind": "constant"}, "schedule"),
        strategy=Spec.of({"kind": "single"}, "strategy"),
        show=Quiet(),
    )


@pytest.mark.parametrize(("layers", "pairs"), [("last", [(-1, -1)]), ("every", [(1, 2), (2, 5)])])
def test_the_loss_is_distilberts_whatever_the_micro_batches(layers: str, pairs: list[tuple[int, int]]) -> None:
    student, teacher = build(STUDENT, seed=3), build(TEACHER, seed=4)
    loss = expected(student, teacher, pairs)
    loss.backward()
    trained = task(layers=layers)
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    stood = {name: tensor.clone() for name, tensor in trained.teacher.state_dict().items()}
    one_step(trained)
    assert trained.figures.loss == pytest.approx(loss.item(), rel=1e-5)
    weighed = 2 * trained.parts["hard"] + 5 * trained.parts["soft"] + trained.parts["cosine"]
    assert weighed.item() == pytest.approx(loss.item(), rel=1e-5)
    assert set(trained.gauges()) == {"train/hard", "train/soft", "train/cosine"}
    for name, parameter in student.named_parameters():
        gradient = before[name] - trained.model.state_dict()[name]
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert not trained.teacher.training
    assert all(torch.equal(tensor, stood[name]) for name, tensor in trained.teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in trained.teacher.parameters())
    assert all(name.startswith("model.") for name in trained.state_dict())


def test_a_student_comes_to_answer_as_its_teacher() -> None:
    """From soft targets alone, between models of other widths."""
    trained = task(merge(STUDENT, {"trunk": {"dim": 16}}), hard=0.0, cosine=0.0, temperature=1.0)
    one_step(trained)
    first = trained.parts["soft"].item()
    one_step(trained, 80, rate=0.1)
    assert trained.parts["soft"].item() < 0.3 * first


def test_causal_models() -> None:
    student, teacher = merge(STUDENT, CAUSAL), merge(TEACHER, CAUSAL)
    trained = task(student, teacher, objective={"kind": "causal_lm"})
    one_step(trained)
    assert trained.figures.targets == sum((b["labels"][:, 1:] != -100).sum().item() for b in batches())
    assert all(value > 0 for value in trained.parts.values())
    ids = batches()[1]
    assert torch.equal(trained.validation_step(ids), trained.objective.validation_step(ids))


@pytest.mark.parametrize(
    ("student", "teacher", "options", "says"),
    [
        ({}, CAUSAL, {}, r"task: the teacher: task=masked_lm does not fit this single_tower \(head lm_head, causal"),
        (CAUSAL, {}, {}, r"task\.objective: task=masked_lm does not fit this single_tower"),
        ({"trunk": {"dim": 12}}, {}, {}, r"cosine=1\.0 compares hidden .* 12 wide, the teacher's 24; set task\.cosine"),
        ({"trunk": {"input": {"vocab": 61}}}, {}, {}, r"the teacher knows 60 tokens and the student 61"),
        ({"trunk": {"context_length": 65}}, {}, {}, r"the teacher reads 64 tokens, the student 65"),
        ({}, {}, {"soft": 0.0, "cosine": 0.0}, r"soft=0 and cosine=0 leave the teacher unheard"),
    ],
    ids=["teacher", "student", "width", "vocabulary", "context", "unheard"],
)
def test_what_can_not_be_is_said(student: Any, teacher: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says) as caught:
        task(merge(STUDENT, student), merge(TEACHER, teacher), **options)
    assert "\n" not in str(caught.value)


def test_an_encoder_decoder_is_no_student() -> None:
    from tiny import encoder_decoder

    with pytest.raises(SpecError, match=r"objective=span_corruption: a teacher is listened to in masked_lm and causal"):
        task(encoder_decoder(), objective={"kind": "span_corruption"})
