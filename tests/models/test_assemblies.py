"""Whole models: what goes in and comes out, labels and losses, hidden states, the cache, packed documents."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from mlplatform.context import Cache, Output
from mlplatform.errors import DataError
from mlplatform.models import build

FAMILIES = list(tiny.SMALL)


def tokens(batch: int = 2, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(1, 49, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_outputs_are_a_mapping_with_attributes() -> None:
    out = Output(logits=1)
    out.loss = 2
    assert (out["loss"], out.logits, out.pooler_output, dict(out)) == (2, 1, None, {"logits": 1, "loss": 2})
    with pytest.raises(AttributeError):
        out.__deepcopy__  # noqa: B018


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_every_layers_input_and_the_end(family: str) -> None:
    model, ids = tiny.model(family, "head=none"), tokens()
    out = model(input_ids=ids, output_hidden_states=True)
    assert len(out.hidden_states) == 3
    assert out.hidden_states[-1] is out.last_hidden_state
    from mlplatform.context import Context

    context = Context.of({"input_ids": ids}, 9, ids.device)
    x = model.trunk.input({"input_ids": ids}, context)  # type: ignore[union-attr, operator]
    for state, layer in zip(out.hidden_states, model.trunk.layers, strict=False):  # type: ignore[union-attr, arg-type]
        assert torch.equal(state, x)
        x = layer(x, context)
    norm = model.trunk.final_norm  # type: ignore[union-attr]
    assert torch.equal(out.last_hidden_state, x if norm is None else norm(x))  # type: ignore[operator]
    assert "hidden_states" not in model(input_ids=ids)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_causal_labels_are_the_tokens_themselves(family: str) -> None:
    model, ids = tiny.model(family), tokens()
    labels = ids.clone()
    labels[0, 4:7] = -100
    out = model(input_ids=ids, labels=labels)
    want = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, want, rtol=1e-5, atol=1e-6)
    assert out.loss_count == (labels[:, 1:] != -100).sum()
    torch.testing.assert_close(out.loss, out.loss_sum / out.loss_count)
    quiet = model(input_ids=ids, labels=labels, logits=False)
    assert "logits" not in quiet
    assert torch.equal(quiet.loss, out.loss)


def test_masked_labels_stand_where_they_are_predicted() -> None:
    model, ids = tiny.model("bert"), tokens()
    labels = torch.full_like(ids, -100)
    labels[:, 3] = ids[:, 3]
    out = model(input_ids=ids, labels=labels)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits[:, 3], ids[:, 3]), rtol=1e-5, atol=1e-6)
    assert out.loss_count == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_a_target_has_loss_zero(family: str) -> None:
    out = tiny.model(family)(input_ids=tokens(), labels=torch.full((2, 9), -100))
    assert (out.loss.item(), out.loss_count.item()) == (0.0, 0)
    out.loss.backward()


@pytest.mark.parametrize("head", ["pooled", "pretraining"])
def test_labels_for_a_head_without_a_loss(head: str) -> None:
    model = tiny.model("bert", f"head={head}")
    with pytest.raises(DataError, match=r"the batch has 'labels', but the head '(pooler|joint)' has no loss"):
        model(input_ids=tokens(), labels=tokens())


@pytest.mark.parametrize("family", FAMILIES)
def test_halves_of_a_batch_sum_to_the_whole(family: str) -> None:
    """Loss sums and counts, and their gradients, add up: what accumulation stands on."""
    model, ids = tiny.model(family), tokens(4)
    labels = ids.clone()
    labels[0, 2:] = -100

    def summed(*parts: slice) -> tuple[Tensor, int, list[Tensor]]:
        model.zero_grad()
        total, count = torch.zeros(()), 0
        for part in parts:
            out = model(input_ids=ids[part], labels=labels[part])
            out.loss_sum.backward()
            total, count = total + out.loss_sum.detach(), count + int(out.loss_count)
        return total, count, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole, parts = summed(slice(0, 4)), summed(slice(0, 1), slice(1, 4))
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-5)
    assert parts[1] == whole[1]
    for a, b in zip(parts[2], whole[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(family: str, side: str) -> None:
    model, ids = tiny.model(family, "head=none"), tokens(1, 6)
    pad = torch.zeros(1, 3, dtype=torch.long)
    padded = torch.cat((pad, ids) if side == "left" else (ids, pad), 1)
    mask = (torch.arange(9) >= 3 if side == "left" else torch.arange(9) < 6).long()[None]
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model(input_ids=padded, attention_mask=mask, position_ids=places).last_hidden_state
    assert out.isfinite().all()
    torch.testing.assert_close(out[mask.bool()], model(input_ids=ids).last_hidden_state[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_never_leak(family: str) -> None:
    """Change a token of document 1: all that is computed for document 2 stays bit-equal."""
    model, ids = tiny.model(family), tokens(1, 9)
    documents = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2, 0]])
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 0]])
    labels = ids.clone()
    labels[0, :5] = -100
    changed = ids.clone()
    changed[0, 1] = (ids[0, 1] + 7) % 49
    one = model(input_ids=ids, document_ids=documents, position_ids=places, labels=labels, output_hidden_states=True)
    two = model(
        input_ids=changed, document_ids=documents, position_ids=places, labels=labels, output_hidden_states=True
    )
    for a, b in zip(one.hidden_states, two.hidden_states, strict=True):
        assert torch.equal(a[:, 4:], b[:, 4:])
        assert not torch.equal(a[:, :4], b[:, :4])
    assert torch.equal(one.logits[:, 4:], two.logits[:, 4:])
    assert torch.equal(one.loss, two.loss)
    alone = model(input_ids=ids[:, 4:8])
    torch.testing.assert_close(one.logits[:, 4:8], alone.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("padded", [False, True])
def test_with_a_cache_equals_without(family: str, padded: bool) -> None:
    model, ids = tiny.model(family), tokens()
    mask = torch.ones(2, 9, dtype=torch.long)
    if padded:
        mask[0, :4] = 0
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    whole = model(input_ids=ids, attention_mask=mask, position_ids=places).logits
    cache, parts, start = Cache(), [], 0
    for step in (5, 1, 1, 2):
        end = start + step
        seen = {"attention_mask": mask[:, :end], "position_ids": places[:, start:end]} if padded else {}
        parts.append(model(input_ids=ids[:, start:end], cache=cache, **seen).logits)
        start = end
    assert cache.length == 9
    got = torch.cat(parts, 1)
    torch.testing.assert_close(got[mask.bool()], whole[mask.bool()], rtol=1e-4, atol=1e-5)
    assert got.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_may_come_instead_of_tokens(family: str) -> None:
    model, ids = tiny.model(family), tokens()
    rows = model.trunk.input.rows(ids)  # type: ignore[union-attr, operator]
    assert torch.equal(model(inputs_embeds=rows).logits, model(input_ids=ids).logits)


def test_absent_arguments_may_be_none() -> None:
    model, ids = tiny.model("bert"), tokens()
    names = ("attention_mask", "position_ids", "token_type_ids", "document_ids", "labels", "inputs_embeds")
    assert torch.equal(model(input_ids=ids, **dict.fromkeys(names)).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_without_tokens(family: str) -> None:
    with pytest.raises(DataError, match="the batch has no 'input_ids'"):
        tiny.model(family)(attention_mask=torch.ones(1, 3))


# ---- two towers ----
def two_towers() -> Any:
    return tiny.stirred(build(tiny.encoder_decoder()))


def test_labels_shifted_right_are_what_the_decoder_reads() -> None:
    model, source, labels = two_towers(), tokens(), tokens(seed=1)
    labels[0, 6:] = -100
    shifted = torch.cat((torch.zeros(2, 1, dtype=torch.long), labels[:, :-1].clamp(min=0)), 1)
    assert torch.equal(model.shift_right(labels), shifted)
    out = model(input_ids=source, labels=labels)
    given = model(input_ids=source, decoder_input_ids=shifted)
    assert torch.equal(out.logits, given.logits)
    want = F.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(out.loss, want, rtol=1e-5, atol=1e-6)
    assert out.loss_count == (labels != -100).sum()


def test_the_encoders_padding_is_not_read() -> None:
    model, source, target = two_towers(), tokens(1, 6), tokens(1, 4, seed=1)
    padded = torch.cat((source, torch.full((1, 3), 7)), 1)
    mask = (torch.arange(9) < 6).long()[None]
    one = model(input_ids=source, decoder_input_ids=target)
    two = model(input_ids=padded, attention_mask=mask, decoder_input_ids=target)
    torch.testing.assert_close(one.logits, two.logits, rtol=1e-4, atol=1e-5)


def test_an_encoding_can_be_used_again_with_a_cache() -> None:
    model, source, target = two_towers(), tokens(), tokens(2, 5, seed=1)
    whole = model(input_ids=source, decoder_input_ids=target, output_hidden_states=True)
    assert len(whole.encoder_hidden_states) == len(whole.decoder_hidden_states) == 3
    encoded = model.encode({"input_ids": source})
    cache, parts = Cache(), []
    for place in range(5):
        step = target[:, place : place + 1]
        parts.append(model(decoder_input_ids=step, encoder_outputs=encoded, cache=cache).logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole.logits, rtol=1e-4, atol=1e-5)


def test_a_decoder_with_nothing_to_read() -> None:
    with pytest.raises(DataError, match="the batch has no 'decoder_input_ids' and no 'labels'"):
        two_towers()(input_ids=tokens())


def test_pairs_are_scored_by_their_cosine() -> None:
    model: Any = tiny.stirred(build(tiny.dual_tower()))
    ids, pixels = tokens(3), torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    out = model(input_ids=ids, pixel_values=pixels, return_loss=True)
    torch.testing.assert_close(out.text_embeds.norm(dim=-1), torch.ones(3))
    cosine = F.cosine_similarity(out.text_embeds[:, None], out.image_embeds[None], dim=-1)
    torch.testing.assert_close(out.logits_per_text, cosine * model.logit_scale.exp())
    assert torch.equal(out.logits_per_image, out.logits_per_text.T)
    own = torch.arange(3)
    want = (F.cross_entropy(out.logits_per_text, own) + F.cross_entropy(out.logits_per_image, own)) / 2
    torch.testing.assert_close(out.loss, want)
    assert set(model(input_ids=ids)) == {"text_embeds", "text_model_output"}
    torch.testing.assert_close(out.image_embeds, F.normalize(out.vision_model_output.pooler_output, dim=-1))


def test_pairs_scored_by_themselves() -> None:
    """Each of the nine scores is a yes or no by itself: yes on the diagonal."""
    model: Any = tiny.stirred(build({**tiny.dual_tower(), "loss": "sigmoid", "logit_bias": -1.0}))
    ids, pixels = tokens(3), torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    out = model(input_ids=ids, pixel_values=pixels, return_loss=True)
    want = F.binary_cross_entropy_with_logits(out.logits_per_text, torch.eye(3), reduction="sum") / 3
    torch.testing.assert_close(out.loss, want)
    assert out.loss_count == 3


@pytest.mark.parametrize(
    ("texts", "images", "message"),
    [
        (0, 0, "neither 'input_ids' nor 'pixel_values'"),
        (2, 0, "the loss needs both"),
        (2, 3, "2 texts and 3 images are no pairs"),
    ],
)
def test_what_makes_no_pairs(texts: int, images: int, message: str) -> None:
    model: Any = build(tiny.dual_tower())
    batch = {"input_ids": tokens(texts)} if texts else {}
    batch |= {"pixel_values": torch.zeros(images, 3, 16, 16)} if images else {}
    with pytest.raises(DataError, match=message):
        model(**batch, return_loss=True)


@pytest.mark.parametrize("size", [(16, 20), (18, 18), (8, 8)])
def test_images_of_another_size(size: tuple[int, int]) -> None:
    model: Any = tiny.stirred(build({"kind": "single_tower", "trunk": tiny.image_tower()}))
    pixels = torch.zeros(1, 3, *size)
    with pytest.raises(DataError, match=f"images are {size[0]}x{size[1]} pixels, the model takes 16x16"):
        model(pixel_values=pixels)
    states = model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    assert states.shape == (1, 1 + (size[0] // 4) * (size[1] // 4), 24)


def test_image_features_take_the_place_of_image_tokens() -> None:
    model: Any = tiny.stirred(build(tiny.vision_language()))
    ids, pixels = tokens(2, 20), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ids[:, 2:18] = 49
    out = model(input_ids=ids, pixel_values=pixels, labels=ids.masked_fill(ids == 49, -100))
    states = model.vision(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    features = model.projector(states)
    torch.testing.assert_close(out.image_hidden_states, features.flatten(0, 1))
    x = model.language.trunk.input.table(ids).clone()
    x[:, 2:18] = features
    torch.testing.assert_close(out.logits, model.language(inputs_embeds=x).logits)
    assert out.loss.isfinite()
    ids[0, 2] = 3
    with pytest.raises(DataError, match="the text has 31 image tokens, the images have 32 patches"):
        model(input_ids=ids, pixel_values=pixels)
