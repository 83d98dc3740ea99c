"""Small record tasks on rows the test gives: tokenizers, models, batches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mlplatform.data.examples import RecordRows, Tools
from mlplatform.data.material import RecordMaterial
from mlplatform.data.module import DataModule
from mlplatform.data.record_sources import JSONRows
from mlplatform.models import build
from mlplatform.processors.tokenizer import Tokenizer, train
from mlplatform.registry import Spec, merge

WORDS = [f"{a}{b}" for a in "bdgklmnprst" for b in ("a", "e", "i", "o", "u")]
BERT: dict[str, Any] = {
    "kind": "single_tower",
    "trunk": {
        "kind": "transformer",
        "dim": 32,
        "depth": 2,
        "context_length": 64,
        "norm": {"kind": "layer_norm", "eps": 1e-12},
        "input": {"kind": "tokens", "vocab": 400, "positions": {"kind": "learned"}, "segments": 2, "norm": True},
        "layer": {
            "kind": "post_norm",
            "attention": {"kind": "attention", "heads": 2, "mask": "full", "bias": True},
            "mlp": {"kind": "mlp", "width": 48, "activation": "gelu"},
        },
    },
    "init": {"kind": "normal", "std": 0.1},
}


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tokenizer(texts: Sequence[str] = WORDS, vocab: int = 400) -> Tokenizer:
    return train([" ".join(texts), *texts], vocab, "masked")


def bert(head: dict[str, Any], **trunk: Any) -> dict[str, Any]:
    return merge(BERT, {"head": head, "trunk": trunk})


class Run:
    """A task with its model and its data, ready to be asked.

    Args:
        rows: of the train split; `held_out` of the validation split, the same rows where it isn't given.
    """

    def __init__(
        self,
        folder: Path,
        task: Mapping[str, Any],
        model: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        held_out: Sequence[Mapping[str, Any]] | None = None,
        *,
        tools: Mapping[str, Any] | None = None,
        length: int = 32,
        micro: int = 4,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        files = {"path": str(write(folder / "train.jsonl", rows))}
        files["validation"] = str(write(folder / "validation.jsonl", rows if held_out is None else held_out))
        source = JSONRows(**files, **(data or {}))  # type: ignore[arg-type]
        self.model = build(model, seed=0)
        self.task: Any = Spec.of(task, "task", "task").build(model=self.model)
        opened = source.open(self.task.reads())
        self.tools = Tools(length=length, classes=opened.classes, **(tools or {}))
        material = RecordMaterial(source, opened, self.tools.tokenizer)
        shape = Spec({"kind": "rows", "sequences": micro, "micro": micro, "length": length}, "batch", "batch")
        examples = self.task.examples(self.tools)
        self.data = DataModule(material, shape, examples, 0, 0, 1)
        self.data.setup()
        self.task.settle(self.tools, self.data.records("validation"))

    def rows(self, split: str = "train") -> RecordRows:
        return self.data.records(split)

    def batch(self, count: int | None = None) -> dict[str, torch.Tensor]:
        """Return the first validation rows as one batch, in order."""
        loader = iter(self.data.val_dataloader())
        first: dict[str, torch.Tensor] = next(loader)
        return first if count is None else {name: tensor[:count] for name, tensor in first.items()}

    @torch.no_grad()
    def measured(self) -> dict[str, float]:
        """Return the metrics of a pass over the validation split."""
        self.task.eval()
        self.task.begin_validation()
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in self.data.val_dataloader():
            sums += self.task.validation_step(batch)
        return {**self.task.metrics(sums), **self.task.measured()}
