"""Recipes of documents and questions made small: a few rows, two steps, models of one layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from miniatures import SMALL_BERT, scenes, texts, write
from miniatures_chat import trained

VOCAB = "model.trunk.input.vocab=300"
T5 = [
    *(f"model.{tower}.{size}" for tower in ("encoder", "decoder") for size in ("dim=24", "depth=1")),
    *(
        f"model.{part}.heads=2"
        for part in ("encoder.layer.attention", "decoder.layer.attention", "decoder.layer.cross")
    ),
    "model.encoder.input.vocab=400",
    "batch.sequences=4",
    "batch.micro=4",
]


def gpt2(folder: Path) -> list[str]:
    small = ["model.trunk.dim=24", "model.trunk.depth=1", "model.trunk.layer.attention.heads=2", VOCAB]
    return [*scenes(folder), *small]


def afmoe(folder: Path) -> list[str]:
    heads = [f"model.trunk.layer.attention.{size}" for size in ("heads=2", "kv_heads=1", "head_dim=16")]
    experts = ["model.trunk.layer.mlp.experts=4", "model.trunk.layer.mlp.width=16"]
    return [*scenes(folder), "model.trunk.dim=24", *heads, *experts, VOCAB]


def bert(folder: Path) -> list[str]:
    return [*scenes(folder), *SMALL_BERT, VOCAB]


def distilbert(folder: Path) -> list[str]:
    small = [*bert(folder), "batch.sequences=4", "batch.micro=4"]
    run = trained(folder, "bert", small)
    return [*small, f"teacher.source={run}", f"tokenizer.path={run / 'tokenizer'}"]


def roberta(folder: Path) -> list[str]:
    return [*_lines(folder), *SMALL_BERT, VOCAB, "batch.length=16"]


def t5_spans(folder: Path) -> list[str]:
    return [*_lines(folder), *T5]


def qa(folder: Path) -> list[str]:
    rows = []
    for number, text in enumerate(texts()):
        context = f"{text} : int, default={number}"
        answers = {"text": [str(number)], "answer_start": [context.index("=") + 1]}
        rows.append({"question": f"What is the default of {text}?", "context": context, "answers": answers})
    return [*write(folder, rows), *SMALL_BERT, VOCAB]


def _lines(folder: Path) -> list[str]:
    """Write texts with the first words as `target`; return the overrides that name them."""
    rows = [{"source": f"{i} {' '.join(texts())}", "target": text} for i, text in enumerate(texts())]
    return write(folder, rows)


MINIATURES: dict[str, Callable[[Path], list[str]]] = {
    made.__name__: made for made in (gpt2, afmoe, bert, distilbert, roberta, t5_spans, qa)
}
"""Recipe -> what writes its miniature's data into a folder and returns the overrides that shrink it."""
