"""Every family, made small, learns: its loss falls below what is reached without looking at the input.

The floor is the entropy of the targets by themselves: of the tokens' own distribution, of the classes. Each batch is
new, so that nothing can be learned by heart. Models start by their own `init:` and learn by the project's own AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from mlplatform.cli.compose import compose_model
from mlplatform.models import build
from mlplatform.training.optimizers import adamw

Batch = dict[str, Any]
WORDS, CLASSES, ROWS, LENGTH = 16, 4, 16, 16
FIRST = 8
"""The first of the words' numbers; below it stand a mask, a start and the token for an image."""
MASK, START, IMAGE = 3, 2, 4
VOCAB = 32


@dataclass
class Course:
    """What a family learns from, and what it must get below.

    Args:
        model: its YAML and overrides. batch: makes a new batch. floor: nats per target.
        steps, lr: how long, and the peak rate, reached after a tenth. loss: of an output.
    """

    model: list[str]
    batch: Callable[[torch.Generator], Batch]
    floor: float
    steps: int = 150
    lr: float = 5e-3
    loss: Callable[[Any], Tensor] = lambda out: out.loss


def text(random: torch.Generator, rows: int = ROWS) -> Tensor:
    """Return words (rows, LENGTH): each follows from the one before, but for one in eight, which is any."""
    words = torch.randint(WORDS, (rows, LENGTH), generator=random)
    free = torch.rand(rows, LENGTH, generator=random) < 1 / 8
    for place in range(1, LENGTH):
        words[:, place] = torch.where(free[:, place], words[:, place], (words[:, place - 1] * 5 + 3) % WORDS)
    return words + FIRST


def written(random: torch.Generator) -> Batch:
    words = text(random)
    return {"input_ids": words, "labels": words}


def masked(random: torch.Generator) -> Batch:
    words = text(random)
    hidden = torch.rand(words.shape, generator=random) < 0.2
    hidden[:, 1] = True
    return {"input_ids": words.masked_fill(hidden, MASK), "labels": words.masked_fill(~hidden, -100)}


def spans(random: torch.Generator) -> Batch:
    """Four words in the middle are taken out, and have to be written."""
    words = text(random)
    return {
        "input_ids": torch.cat([words[:, :6], words[:, 6:7] * 0 + MASK, words[:, 10:]], 1),
        "labels": words[:, 6:10],
    }


def shown(random: torch.Generator, side: int = 16, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Return images with a bright quarter among noise, and which quarter that is."""
    quarter = torch.arange(rows) % CLASSES
    images = 0.3 * torch.randn(rows, 3, side, side, generator=random)
    for row, (down, right) in enumerate(zip((quarter // 2).tolist(), (quarter % 2).tolist(), strict=True)):
        images[row, :, down * side // 2 :, right * side // 2 :][:, : side // 2, : side // 2] += 1.0
    return images, quarter


def classified(random: torch.Generator) -> Batch:
    images, quarter = shown(random)
    return {"pixel_values": images, "labels": quarter}


def paired(random: torch.Generator) -> Batch:
    """One image of each quarter and a text that says which."""
    images, quarter = shown(random, rows=CLASSES)
    words = torch.stack([torch.full_like(quarter, START), FIRST + quarter, torch.full_like(quarter, VOCAB - 1)], 1)
    return {"pixel_values": images, "input_ids": words, "return_loss": True}


def captioned(random: torch.Generator) -> Batch:
    """The one word after the start is the quarter."""
    images, quarter = shown(random)
    words = torch.stack([torch.full_like(quarter, START), FIRST + quarter], 1)
    return {"pixel_values": images, "input_ids": words, "labels": words}


def told(side: int, patches: int) -> Callable[[torch.Generator], Batch]:
    """Return what makes texts of an image and one word after it."""

    def batch(random: torch.Generator) -> Batch:
        images, quarter = shown(random, side)
        words = torch.cat([torch.full((ROWS, patches), IMAGE), FIRST + quarter[:, None]], 1)
        labels = words.clone()
        labels[:, :patches] = -100
        return {"pixel_values": images, "input_ids": words, "labels": labels}

    return batch


def found(random: torch.Generator) -> Batch:
    """One object an image: the bright quarter, whose class is where it is."""
    images, quarter = shown(random, 32)
    boxes = torch.stack([0.25 + 0.5 * (quarter % 2), 0.25 + 0.5 * (quarter // 2), *torch.full((2, ROWS), 0.5)], 1)
    labels = [{"class_labels": c[None], "boxes": b[None]} for c, b in zip(quarter, boxes, strict=True)]
    return {"pixel_values": images, "labels": labels}


def tones(random: torch.Generator, samples: int) -> tuple[Tensor, Tensor]:
    """Return sounds of one pitch at any phase, and which pitch that is."""
    pitch = torch.arange(ROWS) % CLASSES
    phase = 2 * math.pi * torch.rand(ROWS, 1, generator=random)
    return torch.sin(torch.arange(samples) * (0.2 * 1.7 ** pitch[:, None]) + phase), pitch


def heard(random: torch.Generator) -> Batch:
    waves, pitch = tones(random, 200)
    return {"input_values": waves, "labels": pitch}


def transcribed(random: torch.Generator) -> Batch:
    """Log-mel frames with one loud bin, and the word for it."""
    frames, bins = 0.3 * torch.randn(ROWS, 8, 24, generator=random), torch.arange(ROWS) % CLASSES
    frames[torch.arange(ROWS), bins] += 1.0
    return {"input_features": frames, "labels": FIRST + bins[:, None]}


def sized(prefix: str, *more: str) -> list[str]:
    """Return overrides of a tower: 32 wide, two layers, two heads."""
    return [f"{prefix}.{one}" for one in ("dim=32", "depth=2", "layer.attention.heads=2", *more)]


def reading(prefix: str, *more: str) -> list[str]:
    """Return overrides of a tower that reads another."""
    return sized(prefix, "layer.cross.heads=2", *more)


VOCABULARY, WIDTH = f"input.vocab={VOCAB}", "layer.mlp.width=64"
BERT = ["init.std=0.1", "trunk.context_length=24", *sized("trunk", VOCABULARY, WIDTH)]
STILL = ["trunk.input.dropout=0.0", "trunk.layer.dropout=0.0", "trunk.layer.attention.dropout=0.0"]
KEYS = ("layer.attention.kv_heads=1", "layer.attention.head_dim=16")
PATCHES = ("input.image_size=16", "input.patch=8", "context_length=5", WIDTH)
WAVE = [*sized("trunk", WIDTH), "trunk.input.front.channels=[16,16,32]", "trunk.input.front.kernels=[10,4,4]",
        "trunk.input.front.strides=[5,2,2]", "trunk.input.positions.kernel=4", "trunk.input.masking.active=false",
        "trunk.input.positions.groups=2", "head=sequence_classification", "heads.sequence_classification.labels=4",
        "heads.sequence_classification.width=16"]  # fmt: skip
MIXTURE = ["experts=4", "top_k=2", "width=32", "shared.width=32"]
FASTVIT = "{inference_mode: false, layers: [1, 1, 1, 1, 1], embed_dims: [8, 8, 16, 32, 32], cls_ratio: 1.0}"
"""With its batch norms: the fused form, which files have, starts without."""
UNIFORM, CLASS = math.log(WORDS), math.log(CLASSES)

NOTHING = 0.1 * 3
"""What the empty slots of four weigh in DETR's loss, when one is known to be taken."""

COURSES = {
    "bert": Course(["bert", *BERT, *STILL], masked, UNIFORM, steps=250),
    "roberta": Course(["roberta", *BERT, *STILL], masked, UNIFORM, steps=250),
    "distilbert": Course(["distilbert", *BERT, *STILL], masked, UNIFORM, steps=250),
    "gpt2": Course(["gpt2_tiny", *sized("trunk", VOCABULARY)], written, UNIFORM),
    "llama": Course(["llama_tiny", *sized("trunk", VOCABULARY, WIDTH, KEYS[0])], written, UNIFORM),
    "ministral3": Course(["ministral3", *sized("trunk", VOCABULARY, WIDTH, *KEYS)], written, UNIFORM),
    "afmoe": Course(
        ["afmoe_tiny", *sized("trunk", VOCABULARY, *KEYS), *(f"trunk.layer.mlp.{n}" for n in MIXTURE),
         "trunk.exceptions=[]"], written, UNIFORM),
    "t5": Course(
        ["t5_tiny", *sized("encoder", VOCABULARY, WIDTH), *reading("decoder", WIDTH)], spans, UNIFORM),
    "t5gemma2": Course(
        ["t5gemma2", *sized("language.encoder", VOCABULARY, WIDTH, *KEYS, "exceptions=[]"),
         f"language.encoder.input.apart={VOCAB - 1}", *sized("language.decoder", WIDTH, *KEYS, "exceptions=[]"),
         *sized("vision.trunk", *PATCHES[:2], "context_length=4", WIDTH),
         "vision.heads.pool.heads=2", "vision.heads.pool.mlp.width=48", "projector.tokens=4",
         f"image_token={VOCAB - 2}"],
        spans, UNIFORM),
    "vit": Course(["vit", *sized("trunk", *PATCHES), "heads.image_classification.labels=4"], classified, CLASS),
    "clip": Course(
        ["clip_tiny", *sized("text.trunk", VOCABULARY, WIDTH), *sized("vision.trunk", *PATCHES),
         "text.heads.shared.width=16", "vision.heads.shared.width=16", f"text.heads.shared.end_token={VOCAB - 1}"],
        paired, CLASS),
    "blip": Course(
        ["blip", *reading("text.trunk", VOCABULARY, WIDTH), *sized("vision.trunk", *PATCHES)],
        captioned, CLASS),
    "llava": Course(
        ["llava_tiny", *sized("vision.trunk", *PATCHES),
         *sized("language.trunk", VOCABULARY, WIDTH, KEYS[0]), f"image_token={IMAGE}"], told(16, 4), CLASS),
    "detr": Course(
        ["detr_tiny", *sized("encoder", WIDTH), *reading("decoder", WIDTH, "context_length=4"),
         "encoder.input.dropout=0.0", "encoder.layer.dropout=0.0", "decoder.layer.dropout=0.0",
         "backbone.trunk.widths=[8,16,32]", "backbone.trunk.stem=8", "heads.detection.labels=4"],
        found, CLASS / (1 + NOTHING), loss=lambda out: out.loss_dict["loss_ce"]),
    "wav2vec2": Course(["wav2vec2_tiny", *WAVE], heard, CLASS),
    "hubert": Course(["hubert_tiny", *WAVE], heard, CLASS),
    "whisper": Course(
        ["whisper", *sized("encoder", WIDTH, "context_length=12", "input.bins=8"),
         *reading("decoder", WIDTH, VOCABULARY, "context_length=8"), f"start_token={START}", "pad_token=0"],
        transcribed, CLASS),
    "fastvlm": Course(
        ["fastvlm", *sized("language.trunk", VOCABULARY, WIDTH, KEYS[0]), f"image_token={IMAGE}",
         f"+vision.trunk.options={FASTVIT}"],
        told(128, 4), CLASS, steps=40),
}  # fmt: skip


@pytest.mark.parametrize("family", COURSES)
def test_it_gets_below_what_is_reached_blindly(family: str) -> None:
    course = COURSES[family]
    name, *overrides = course.model
    torch.manual_seed(0)
    model = build(compose_model(name, overrides).check().config, seed=0).train()
    optimizer = adamw(model, lr=course.lr, betas=(0.9, 0.95), weight_decay=0.0)
    random, last = torch.Generator().manual_seed(1), []
    for step in range(course.steps):
        for group in optimizer.param_groups:
            group["lr"] = course.lr * min(1, (step + 1) / (course.steps // 10))
        out = model(**course.batch(random))
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        last.append(course.loss(out).item())
    assert sum(last[-10:]) / 10 < 0.9 * course.floor
