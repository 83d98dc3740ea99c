"""Texts beside an image: padding of questions, decoding that looks once, the matching loss, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

import mlplatform as mp
from mlplatform.context import Cache
from mlplatform.errors import DataError

TOWER = ["vision.trunk.depth=1", "vision.trunk.dim=32", "vision.trunk.layer.attention.heads=2"]
TOWER += ["vision.trunk.input.image_size=16", "vision.trunk.input.patch=8", "vision.trunk.layer.mlp.width=48"]


def small(name: str, *towers: str) -> Any:
    """Return a shipped BLIP made small; `towers` are the paths of its text towers."""
    changes = []
    for at in towers:
        changes += [f"{at}.dim=32", f"{at}.depth=2", f"{at}.input.vocab=50", f"{at}.context_length=16"]
        changes += [f"{at}.layer.{part}.heads=2" for part in ("attention", "cross")]
        changes += [f"{at}.layer.mlp.width=48"]
    return tiny.stirred(mp.build(name, [*TOWER, *changes]))


def batch(rows: int = 3, length: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 49, (rows, length), generator=generator)
    return {"input_ids": tokens, "pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}


@torch.no_grad()
def test_padding_of_a_question_is_not_read() -> None:
    model, given = small("blip_vqa", "text.encoder", "text.decoder"), batch()
    answer = torch.tensor([[3, 4, 5]]).expand(3, -1)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 2 + [0] * 4])
    together = model(**given, attention_mask=mask, decoder_input_ids=answer).logits
    for row, real in enumerate((6, 4, 2)):
        one = {"input_ids": given["input_ids"][row : row + 1, :real], "pixel_values": given["pixel_values"][row][None]}
        alone = model(**one, decoder_input_ids=answer[:1]).logits[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_labels_are_read_by_the_decoder_and_scored_on_the_next() -> None:
    model, given = small("blip_vqa", "text.encoder", "text.decoder"), batch()
    labels = torch.tensor([[3, 4, 5], [7, 8, -100], [9, -100, -100]])
    out = model(**given, labels=labels)
    same = model(**given, decoder_input_ids=labels.clamp(min=0)).logits
    torch.testing.assert_close(out.logits, same)
    want = F.cross_entropy(same[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, want)
    assert out.loss_count == 3


@torch.no_grad()
def test_decoding_looks_once() -> None:
    model, given = small("blip", "text.trunk"), batch()
    whole = model(**given)
    cache = Cache()
    first = model(given["input_ids"][:, :4], given["pixel_values"], cache=cache)
    rest = [model(given["input_ids"][:, i : i + 1], image_embeds=first.image_embeds, cache=cache) for i in (4, 5)]
    torch.testing.assert_close(torch.cat([o.logits for o in (first, *rest)], 1), whole.logits, atol=1e-5, rtol=1e-5)


def test_matching_has_a_loss_and_the_cosine_looks_at_nothing() -> None:
    model, given = small("blip_retrieval", "text.trunk"), batch()
    labels = torch.tensor([1, 0, 1])
    out = model(**given, labels=labels)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.itm_score, labels))
    out.loss.backward()
    assert model.text.trunk.layers[0].cross.q.weight.grad.abs().max() > 0
    assert model.vision.trunk.input.patch.weight.grad.abs().max() > 0
    with torch.no_grad():
        cosines = model(**given, use_itm_head=False)
        blank = model(given["input_ids"], torch.zeros(5, 3, 16, 16), use_itm_head=False)
    assert cosines.itm_score.shape == (3, 3)
    assert blank.itm_score.shape == (5, 3)
    assert cosines.itm_score.abs().max() <= 1
    assert torch.equal(cosines.question_embeds, blank.question_embeds)
    assert not torch.equal(cosines.question_embeds, out.question_embeds)


@pytest.mark.parametrize(("name", "towers"), [("blip", ["text.trunk"]), ("blip_retrieval", ["text.trunk"])])
def test_no_image(name: str, towers: list[str]) -> None:
    with pytest.raises(DataError, match="no 'pixel_values'"):
        small(name, *towers)(batch()["input_ids"])


def test_labels_of_the_other_way() -> None:
    with pytest.raises(DataError, match="labels are of the careful way"):
        small("blip_retrieval", "text.trunk")(**batch(), use_itm_head=False, labels=torch.tensor([1, 0, 1]))
