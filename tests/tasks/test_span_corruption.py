"""Span corruption: nothing is lost, the share, that it depends on the sample alone, exact resume, and bad pairings."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlplatform.data.collate import Row
from mlplatform.data.files import SHIPPED
from mlplatform.data.material import DocumentMaterial
from mlplatform.data.module import DataModule
from mlplatform.data.preview import preview
from mlplatform.data.sources import JSONLines
from mlplatform.errors import DataError, SpecError
from mlplatform.models import build
from mlplatform.processors.tokenizer import SENTINELS, Tokenizer, train
from mlplatform.registry import Spec
from mlplatform.tasks.span_corruption import Corruption, chosen_spans, sentinels, sizes
from mlplatform.training.checkpoints import newest_whole
from mlplatform.training.engine import fit
from mlplatform.training.progress import Quiet

END, FIRST = 1, 3


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Scenes of Shakespeare, cut to 1 to 1200 characters."""
    with gzip.open(SHIPPED / "shakespeare_38plays.txt.gz", "rt", encoding="utf-8") as file:
        parts = file.read(200_000).split("\n\nSCENE ")[1:21]
    return [part[: 1 + (number * 397) % 1200] for number, part in enumerate(parts)]


@pytest.fixture(scope="module")
def words(texts: list[str]) -> Tokenizer:
    """A byte-level BPE of 400 tokens: <pad> </s> <unk> and a hundred sentinels come first."""
    found = train(texts, 400, "sentinels")
    assert (found.pad, found.eos, found.unk, found.mask) == (0, END, 2, None)
    assert sentinels(found) == list(range(FIRST, FIRST + len(SENTINELS)))
    return found


def row(size: int, number: int = 0, seed: int = 1, epoch: int = 0) -> Row:
    inner = np.random.default_rng(size * 1000 + number).integers(103, 400, size)
    ids = np.r_[END, inner, END]
    return Row({"input_ids": ids, "attention_mask": np.ones_like(ids)}, seed, epoch, number)


def put_back(encoder: list[int], labels: list[int]) -> list[int]:
    """Put what the labels say where the encoder's sentinels are."""
    spans: dict[int, list[int]] = {}
    for token in labels:
        if FIRST <= token < FIRST + 100:
            spans[token] = last = []
        else:
            last.append(token)
    whole = [t for token in encoder for t in (spans.pop(token) if token in spans else [token])]
    assert not spans
    return whole


@pytest.mark.parametrize("size", [1, 2, 3, 7, 30, 126])
def test_what_is_taken_out_and_what_is_left_are_the_text(words: Tokenizer, size: int) -> None:
    collate = Corruption(words, 128, 0.15, 3.0)
    for number in range(20):
        one = row(size, number)
        encoder, labels = collate.corrupted(one)
        assert encoder[-1] == labels[-1] == END
        assert put_back(encoder[:-1].tolist(), labels[:-1].tolist()) == one.arrays["input_ids"][1:-1].tolist()
        own = encoder[(encoder >= FIRST) & (encoder < FIRST + 100)]
        assert own.tolist() == list(range(FIRST, FIRST + len(own)))  # in order, each once
        assert len(labels) > len(own) + 1  # every span has a token


@pytest.mark.parametrize(("share", "span"), [(0.15, 3.0), (0.5, 1.0), (0.9, 1.0), (0.99, 1.0), (0.01, 50.0)])
def test_encoder_and_labels_fit_the_length(words: Tokenizer, share: float, span: float) -> None:
    collate = Corruption(words, 128, share, span)
    for number in range(10):
        one = row(126, number)
        encoder, labels = collate.corrupted(one)
        assert max(len(encoder), len(labels)) <= 128
        assert put_back(encoder[:-1].tolist(), labels[:-1].tolist()) == one.arrays["input_ids"][1:-1].tolist()


@pytest.mark.parametrize(("length", "share", "span"), [(512, 0.15, 3.0), (100, 0.5, 5.0), (40, 0.9, 1.0)])
def test_the_share_and_the_mean_length(length: int, share: float, span: float) -> None:
    taken, spans = sizes(length, share, span)
    places = np.zeros(length)
    for seed in range(300):
        gone = chosen_spans(length, share, span, np.random.default_rng(seed))
        assert gone.sum() == taken == round(length * share)
        assert (np.diff(gone.astype(int), prepend=0) == 1).sum() == spans
        places += gone
    assert spans == max(1, min(round(taken / span), length - taken))
    assert (places / 300).min() > 0.2 * share  # no place is spared, the first and the last are not, none always chosen
    assert places.max() < 300


def test_depends_on_seed_epoch_and_sample_alone(words: Tokenizer) -> None:
    collate = Corruption(words, 128, 0.15, 3.0)
    alone, together = collate([row(30, 7)]), collate([row(120, 1), row(30, 7), row(2, 3)])
    for name, tensor in alone.items():
        assert (together[name][1, : tensor.shape[1]] == tensor[0]).all()
    assert together["input_ids"].shape != together["labels"].shape
    short = (together["labels"][1] != -100).sum()
    assert (together["labels"][1, short:] == -100).all()
    assert together["attention_mask"].sum(1).tolist() == [(collate.corrupted(r)[0] > 0).sum() for r in
                                                          (row(120, 1), row(30, 7), row(2, 3))]  # fmt: skip
    arrays = row(30, 7).arrays
    variants = [Row(arrays, 1, 0, 7), Row(arrays, 1, 0, 8), Row(arrays, 2, 0, 7), Row(arrays, 1, 1, 7)]
    assert len({tuple(collate.corrupted(one)[1].tolist()) for one in variants}) == 4


def test_a_filler_has_no_target_and_spoils_nothing(words: Tokenizer) -> None:
    nothing = Row({"input_ids": np.zeros(9, np.int64), "attention_mask": np.zeros(9, np.int64)}, 1, 0, -1)
    collate = Corruption(words, 128, 0.15, 3.0)
    model = build(t5(), seed=0).eval()
    only = model(**collate([nothing]), logits=False)
    assert (only.loss_count, only.loss_sum) == (0, 0)
    both, one = (model(**collate(rows), logits=False) for rows in ([row(30), nothing], [row(30)]))
    assert both.loss_count == one.loss_count
    torch.testing.assert_close(both.loss_sum, one.loss_sum)


# ---- training ----


def t5(**encoder: Any) -> dict[str, Any]:
    tower = {
        "kind": "transformer",
        "dim": 32,
        "depth": 1,
        "context_length": 64,
        "norm": {"kind": "rms_norm"},
        "input": {"kind": "tokens", "vocab": 400},
        "layer": {
            "kind": "pre_norm",
            "attention": {"kind": "attention", "heads": 2, "mask": "full"},
            "mlp": {"kind": "mlp", "width": 48},
            "dropout": 0.1,
        },
        "position_bias": {"kind": "relative_buckets"},
        "final_norm": True,
    }
    layer = {**tower["layer"], "attention": {"kind": "attention", "heads": 2}}
    layer["cross"] = {"kind": "cross_attention", "heads": 2}
    bias = {"kind": "relative_buckets", "bidirectional": False}
    return {
        "kind": "encoder_decoder",
        "encoder": {**tower, **encoder},
        "decoder": {**tower, "input": {"kind": "shared_tokens"}, "layer": layer, "position_bias": bias},
        "head": {"kind": "lm_head", "tied": True},
    }


def task(model: dict[str, Any], **options: Any) -> Any:
    return Spec.of({"kind": "span_corruption", **options}, "task", "task").build(model=build(model, seed=3))


@pytest.fixture
def data(write_texts: Callable[[], Path], words: Tokenizer) -> Callable[..., DataModule]:
    def make(**batch: Any) -> DataModule:
        shape = {"kind": "rows", "sequences": 4, "micro": 2, "length": 32, "layout": "padded", **batch}
        source = JSONLines(path=str(write_texts()), validation=0.2)
        collator = task(t5()).collator(words, shape["length"])
        return DataModule(DocumentMaterial(source, words), Spec.of(shape, "batch", "batch"), collator, 3, 0, 1)

    return make


@pytest.fixture
def write_texts(tmp_path: Path, texts: list[str]) -> Callable[[], Path]:
    import json

    def write() -> Path:
        path = tmp_path / "scenes.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return path

    return write


def trained(folder: Path, data: DataModule, steps: int, resume_from: Path | None = None) -> Any:
    made = task(t5())
    fit(
        made,
        data,
        trainer=Spec.of({"kind": "trainer", "max": f"{steps} steps", "accelerator": "cpu", "keep": 9,
                         "checkpoint_every": "3 steps", "validate_every": "3 steps"}, "trainer"),
        optimizer=Spec.of({"kind": "adamw", "lr": 1e-2}, "optimizer"),
        schedule=Spec.of({"kind": "constant"}, "schedule"),
        strategy=Spec.of({"kind": "single"}, "strategy"),
        folder=folder,
        resume_from=resume_from,
        show=Quiet(),
    )  # fmt: skip
    return made


def test_resumed_through_the_shared_loader_it_ends_the_same(tmp_path: Path, data: Callable[..., DataModule]) -> None:
    whole = trained(tmp_path / "whole", data(), 9)
    again = trained(tmp_path / "again", data(workers=1), 9, tmp_path / "whole/step=00000003")
    assert newest_whole(tmp_path / "again")[0] == tmp_path / "again/step=00000009"
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert whole.figures == again.figures


def test_rows_show_the_input_and_then_what_is_to_be_written(data: Callable[..., DataModule]) -> None:
    for stretches in preview(data(), 3):
        given, written = stretches
        assert (given.trained, written.trained) == (False, True)
        assert "<extra_id_0>" in given.text
        assert written.text.startswith("<extra_id_0>")
        assert written.text.endswith("</s>")


# ---- what does not fit ----


def test_a_tokenizer_without_sentinels_or_with_too_few(words: Tokenizer, texts: list[str]) -> None:
    with pytest.raises(DataError, match=r"needs sentinel tokens <extra_id_0>.*set tokenizer=sentinel_bpe"):
        Corruption(train(texts, 300, "causal"), 128, 0.15, 3.0)
    with pytest.raises(DataError, match=r"4096 tokens lose 205 spans, and it has 100 sentinels; set batch\.length"):
        Corruption(words, 4096, 0.15, 3.0)


@pytest.mark.parametrize(
    ("kind", "model", "says"),
    [
        ("span_corruption", {}, r"does not fit this single_tower \(head lm_head.*it needs an encoder_decoder"),
        ("causal_lm", t5(), r"does not fit this encoder_decoder .*: span_corruption fits it"),
        (
            "span_corruption",
            t5(layer={**t5()["encoder"]["layer"], "attention": {"kind": "attention", "heads": 2}}),
            r"it needs full attention; set model\.encoder\.layer\.attention\.mask",
        ),
    ],
)
def test_models_that_do_not_fit(kind: str, model: dict[str, Any], says: str) -> None:
    decoder = t5()["decoder"]
    decoder["layer"].pop("cross")
    plain = {"kind": "single_tower", "trunk": {**decoder, "input": {"kind": "tokens", "vocab": 400}}}
    plain["head"] = {"kind": "lm_head"}
    with pytest.raises(SpecError, match=says):
        Spec.of({"kind": kind}, "task", "task").build(model=build(model or plain, device="meta"))


@pytest.mark.parametrize(
    ("options", "says"),
    [({"share": 0.0}, "task: share=0 takes nothing out"), ({"span": 0.5}, r"task: span=0\.5: a span has at least one")],
)
def test_options_out_of_range(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        task(t5(), **options)
