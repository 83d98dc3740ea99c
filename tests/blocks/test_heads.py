"""Heads: their outputs and losses against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.context import Context, Output
from mlplatform.errors import DataError, SpecError
from mlplatform.registry import Spec

DIM, VOCAB, LENGTH = 8, 13, 5
NORM = Spec.of({"kind": "layer_norm"}, "norm")


def head(kind: str, **fields: Any) -> tuple[Any, nn.Embedding]:
    table = nn.Embedding(VOCAB, DIM)
    built = Spec.of({"kind": kind, **fields}, "head").build(dim=DIM, tower_norm=NORM, table=table)
    tiny.stirred(table, seed=5)
    return tiny.stirred(built), table


def states(batch: int = 2) -> Tensor:
    return torch.randn(batch, LENGTH, DIM, generator=torch.Generator().manual_seed(0)).requires_grad_(True)


def labels(classes: int = VOCAB) -> Tensor:
    drawn = torch.randint(classes, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    drawn[0, 3] = drawn[1, 0] = -100
    return drawn


def context(padding: Tensor | None = None, tokens: Tensor | None = None, aligned: bool = False) -> Context:
    return Context(torch.arange(LENGTH)[None], padding, tokens=tokens, aligned=aligned)


def same_loss(ours: tuple[Tensor, Tensor], mean: Tensor, targets: int, x: Tensor) -> None:
    """Our (sum, count) give torch's mean, and the same gradient."""
    total, count = ours
    assert total.dtype == torch.float32
    assert count.item() == targets
    assert not count.is_floating_point()
    torch.testing.assert_close(total / count, mean, rtol=1e-5, atol=1e-5)
    ours_x, theirs_x = (torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (total / count, mean))
    torch.testing.assert_close(ours_x, theirs_x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("more", [{}, {"scale": 0.5}, {"scale": "inverse_sqrt_dim"}, {"softcap": 3.0}])
def test_lm_head(tied: bool, bias: bool, more: dict) -> None:
    module, table = head("lm_head", tied=tied, bias=bias, **more)
    x, targets = states(), labels()
    weight = table.weight if tied else module.out.weight
    added = (module.bias if tied else module.out.bias) if bias else None
    scale = {"inverse_sqrt_dim": DIM**-0.5}.get(more.get("scale", 1.0), more.get("scale", 1.0))
    want = F.linear(x * scale, weight, added)
    if "softcap" in more:
        want = 3.0 * torch.tanh(want / 3.0)
    torch.testing.assert_close(module(x, context()).logits, want)
    mean = F.cross_entropy(want[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
    same_loss(module.loss(x, targets, context()), mean, int((targets[:, 1:] != -100).sum()), x)
    aligned = F.cross_entropy(want.flatten(0, 1), targets.flatten())
    same_loss(module.loss(x, targets, context(aligned=True)), aligned, int((targets != -100).sum()), x)
    assert ("out.weight" in dict(module.named_parameters())) != tied


@pytest.mark.parametrize("tied", [True, False])
def test_masked_lm_head(tied: bool) -> None:
    module, table = head("masked_lm_head", tied=tied, activation="relu")
    x, targets = states(), labels()
    hidden = F.layer_norm(module.dense(x).relu(), (DIM,), module.norm.weight, module.norm.bias)
    want = F.linear(hidden, *((table.weight, module.bias) if tied else (module.out.weight, module.out.bias)))
    torch.testing.assert_close(module(x, context()).logits, want)
    mean = F.cross_entropy(want.flatten(0, 1), targets.flatten())
    same_loss(module.loss(x, targets, context()), mean, int((targets != -100).sum()), x)


@pytest.mark.parametrize("aligned", [True, False])
def test_dense_lm_head(aligned: bool) -> None:
    module, _ = head("dense_lm_head", activation="relu")
    masked, _ = head("masked_lm_head", activation="relu")
    x, targets = states(), labels()
    logits = module(x, context()).logits
    assert torch.equal(logits, masked(x, context()).logits)
    seen, wanted = (logits, targets) if aligned else (logits[:, :-1], targets[:, 1:])
    mean = F.cross_entropy(seen.flatten(0, 1), wanted.flatten())
    same_loss(module.loss(x, targets, context(aligned=aligned)), mean, int((wanted != -100).sum()), x)


@pytest.mark.parametrize("kind", ["lm_head", "masked_lm_head", "dense_lm_head"])
def test_an_input_without_a_table_has_no_vocabulary(kind: str) -> None:
    with pytest.raises(SpecError, match="this head needs an input with a token table"):
        Spec.of({"kind": kind}, "head").build(dim=DIM, tower_norm=NORM, table=None)


def test_pooler() -> None:
    module, _ = head("pooler")
    x = states()
    torch.testing.assert_close(module(x, context()).pooler_output, torch.tanh(module.dense(x[:, 0])))


PADDINGS = [
    (None, [4, 4]),
    (torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool(), [2, 4]),
    (torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]).bool(), [4, 4]),
]


@pytest.mark.parametrize(("padding", "last"), PADDINGS)
@pytest.mark.parametrize("pool", ["first", "last", "mean"])
@pytest.mark.parametrize("activation", ["tanh", None])
def test_sequence_classification(padding: Tensor | None, last: list[int], pool: str, activation: str | None) -> None:
    module, _ = head("sequence_classification", labels=3, pool=pool, activation=activation)
    x, targets = states(), torch.tensor([2, 0])
    real = [slice(None)] * 2 if padding is None else list(padding)
    mean = torch.stack([row[used].mean(0) for row, used in zip(x, real, strict=True)])
    pooled = {"first": x[:, 0], "last": x[torch.arange(2), last], "mean": mean}[pool]
    want = module.out(torch.tanh(module.dense(pooled)) if activation else pooled)
    torch.testing.assert_close(module(x, context(padding)).logits, want)
    same_loss(module.loss(x, targets, context(padding)), F.cross_entropy(want, targets), 2, x)


def test_several_labels_and_numbers() -> None:
    x = states()
    module, _ = head("sequence_classification", labels=3, problem="multi_label")
    targets = torch.tensor([[1, 0, 1], [0, 0, 1]])
    want = F.binary_cross_entropy_with_logits(module(x, context()).logits, targets.float())
    same_loss(module.loss(x, targets, context()), want, 6, x)
    module, _ = head("sequence_classification", labels=1, problem="regression")
    numbers = torch.tensor([0.5, -2.0])
    want = F.mse_loss(module(x, context()).logits.squeeze(-1), numbers)
    same_loss(module.loss(x, numbers, context()), want, 2, x)


def test_token_classification() -> None:
    module, _ = head("token_classification", labels=4)
    x, targets = states(), labels(4)
    want = module.out(x)
    torch.testing.assert_close(module(x, context()).logits, want)
    mean = F.cross_entropy(want.flatten(0, 1), targets.flatten())
    same_loss(module.loss(x, targets, context()), mean, int((targets != -100).sum()), x)


def test_span_is_the_mean_of_start_and_end() -> None:
    module, _ = head("span")
    x, targets = states(), torch.tensor([[1, 3], [0, 4]])
    out = module(x, context())
    start, end = F.cross_entropy(out.start_logits, targets[:, 0]), F.cross_entropy(out.end_logits, targets[:, 1])
    same_loss(module.loss(x, targets, context()), (start + end) / 2, 4, x)


@pytest.mark.parametrize("norm", [True, False])
def test_projection_by_the_texts_end(norm: bool) -> None:
    module, _ = head("projection", width=3, output="text_embeds", pool="end", end_token=7, norm=norm)
    x, tokens = states(), torch.tensor([[1, 7, 7, 2, 2], [1, 2, 3, 4, 7]])
    pooled = x[torch.arange(2), [1, 4]]
    if norm:
        pooled = F.layer_norm(pooled, (DIM,), module.norm.weight, module.norm.bias)
    out = module(x, context(tokens=tokens))
    torch.testing.assert_close(out.pooler_output, pooled)
    torch.testing.assert_close(out.text_embeds, pooled @ module.out.weight.T)
    with pytest.raises(SpecError, match="pool=end needs an input of tokens"):
        module(x, context())


def test_projection_of_old_files_takes_the_highest_token() -> None:
    module, _ = head("projection", width=None, pool="end", end_token=2)
    x, tokens = states(), torch.tensor([[1, 9, 2, 9, 0], [1, 2, 3, 4, 5]])
    torch.testing.assert_close(module(x, context(tokens=tokens)).pooler_output, x[torch.arange(2), [1, 4]])


@pytest.mark.parametrize(("pool", "place"), [("first", 0), ("last", -1)])
def test_projection_by_place(pool: str, place: int) -> None:
    module, _ = head("projection", width=3, pool=pool, bias=True)
    x = states()
    want = x[:, place] @ module.out.weight.T + module.out.bias
    torch.testing.assert_close(module(x, context()), Output(pooler_output=want))


def test_pixels_are_put_where_their_patch_was() -> None:
    module, _ = head("pixels", patch=2, channels=3)
    x = states()
    image = module(x, context()).reconstruction
    assert image.shape == (2, 3, 4, 4)
    for patch in range(4):
        row, column = 2 * (patch // 2), 2 * (patch % 2)
        want = (x[:, 1 + patch] @ module.out.weight.T + module.out.bias).unflatten(-1, (3, 2, 2))
        torch.testing.assert_close(image[:, :, row : row + 2, column : column + 2], want)
    with pytest.raises(DataError, match="3 patches are no square"):
        module(x[:, :4], context())


def test_pixels_are_scored_where_they_are_asked_for() -> None:
    module, _ = head("pixels", patch=2, channels=3)
    x, asked = states(), torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    asked[0, :, :2, 2:] = asked[1, :, 2:] = True
    pixels = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    want = F.l1_loss(module(x, context()).reconstruction[asked], pixels[asked])
    same_loss(module.loss(x, pixels.masked_fill(~asked, float("nan")), context()), want, int(asked.sum()), x)


def test_joint_names_its_parts() -> None:
    parts = {"prediction": {"kind": "masked_lm_head"}, "seq_relationship": {"kind": "sequence_classification"}}
    module, _ = head("joint", parts=parts)
    out = module(states(), context())
    assert {k: tuple(v.shape) for k, v in out.items()} == {
        "prediction_logits": (2, LENGTH, VOCAB),
        "seq_relationship_logits": (2, 2),
    }


@pytest.mark.parametrize("kind", ["sequence_classification", "token_classification"])
def test_dropout_only_in_training(kind: str) -> None:
    module, _ = head(kind, dropout=0.5)
    x = states()
    assert torch.equal(module(x, context()).logits, module(x, context()).logits)
    module.train()
    torch.manual_seed(0)
    assert not torch.equal(module(x, context()).logits, module(x, context()).logits)
