"""The runs that strategies are compared by: four small models, the same global batch, any number of processes."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from test_contrastive import Pairs
from training_runs import in_processes, ranks, texts, write_source

from mlplatform.cli.compose import compose_model
from mlplatform.data.material import DocumentMaterial
from mlplatform.data.module import DataModule
from mlplatform.data.sources import JSONLines
from mlplatform.models import build
from mlplatform.models.start import Drawn, later
from mlplatform.processors.tokenizer import train
from mlplatform.registry import Spec
from mlplatform.training.engine import Result, fit
from mlplatform.training.freezing import freeze
from mlplatform.training.progress import Lines
from mlplatform.training.strategies import Place

STEPS = 20
VOCABULARY = 400
TOWERS = {
    "llama": ("llama_tiny", "causal_lm", "causal", [
        "trunk.dim=32", "trunk.depth=2", "trunk.context_length=32", f"trunk.input.vocab={VOCABULARY}",
        "trunk.layer.attention.heads=4", "trunk.layer.attention.kv_heads=2", "trunk.layer.mlp.width=48",
    ]),
    "afmoe": ("afmoe_tiny", "causal_lm", "causal", [
        "trunk.dim=32", "trunk.depth=2", "trunk.context_length=32", f"trunk.input.vocab={VOCABULARY}",
        "trunk.layer.attention.heads=4", "trunk.layer.attention.kv_heads=2", "trunk.layer.attention.head_dim=8",
        "trunk.layer.attention.window=16", "trunk.layer.mlp.experts=4", "trunk.layer.mlp.width=16",
        "trunk.layer.mlp.shared.width=16",
        "trunk.exceptions=[{layers: ':1', mlp: {kind: gated_mlp, width: 48, activation: silu}}]",
    ]),
    "t5": ("t5_tiny", "span_corruption", "sentinels", [
        "encoder.dim=32", "decoder.dim=32", "encoder.depth=1", "decoder.depth=1",
        f"encoder.input.vocab={VOCABULARY}",
        *(f"{tower}.layer.{part}={n}" for tower in ("encoder", "decoder")
          for part, n in (("attention.heads", 4), ("attention.head_dim", 8), ("mlp.width", 48))),
        "decoder.layer.cross.heads=4", "decoder.layer.cross.head_dim=8",
    ]),
    "variety": ("llama_tiny", "causal_lm", "causal", [
        "trunk.dim=32", "trunk.depth=2", "trunk.context_length=32", f"trunk.input.vocab={VOCABULARY}",
        "trunk.layer.attention.heads=4", "trunk.layer.attention.kv_heads=1", "trunk.layer.attention.qk_norm=true",
        "trunk.layer.attention.bias=true", "trunk.layer.attention.rope=null", "trunk.layer.attention.gate=true",
        "trunk.position_bias={kind: alibi}", "trunk.layer.mlp.width=48", "trunk.layer.mlp.bias=true",
        "heads.lm.tied=false", "heads.lm.bias=true",
    ]),
    "bert": ("bert_tiny", "masked_lm", "masked", [
        "trunk.dim=32", "trunk.depth=1", "trunk.context_length=32", f"trunk.input.vocab={VOCABULARY}",
        "trunk.layer.attention.heads=4", "trunk.layer.mlp.width=48", "trunk.input.dropout=0", "trunk.layer.dropout=0",
        "trunk.layer.attention.dropout=0",
    ]),
}  # fmt: skip
MODELS = ("llama", "afmoe", "t5", "clip")


class Cell(NamedTuple):
    """One run: a strategy and a model, with what else differs from the plain one."""

    model: str
    strategy: dict[str, Any]
    trainer: dict[str, Any] = {}  # noqa: RUF012
    optimizer: dict[str, Any] = {"kind": "adamw", "lr": 3e-3}  # noqa: RUF012
    resume: str = ""
    steps: int = STEPS
    micro: int = 2
    stop: int = 0
    """The step after which it is told to stop; 0 for its end."""
    freeze: tuple[str, ...] = ()
    adapter: dict[str, Any] | None = None


class Made(NamedTuple):
    task: Any
    data: DataModule


def make(folder: Path, cell: Cell, strategy: Spec) -> Made:
    """Return the task of a small model, and its data as this process reads them."""
    if cell.model == "clip":
        pairs = Pairs(folder / "pairs", micro=4 * cell.micro, strategy=strategy.data)
        return Made(pairs.task, pairs.data)
    name, task, kind, overrides = TOWERS[cell.model]
    spec = compose_model(name, overrides).check().config
    built = later(spec, Drawn(1)) if strategy.build().fills else build(spec, seed=1)
    freeze(built, cell.freeze)
    if cell.adapter is not None:
        Spec.of(cell.adapter, "adapter", "adapter").build().apply(built, seed=2)
    made = Spec.of({"kind": task}, "task", "task").build(model=built)
    words = train(texts(10), VOCABULARY, kind)  # type: ignore[arg-type]
    layout = "packed" if task == "causal_lm" else "padded"
    shape = {"kind": "rows", "sequences": 8, "micro": cell.micro, "length": 32, "layout": layout}
    share = strategy.build().share(Place.find("cpu", 1))
    material = DocumentMaterial(JSONLines(path=str(write_source(folder)), validation=0.1), words)
    collator = made.collator(words, 32)
    return Made(made, DataModule(material, Spec.of(shape, "batch", "batch"), collator, 3, share.number, share.count))


def go(folder: Path, cell: Cell, rows: Path) -> tuple[list[tuple[int, dict[str, float]]], Result]:
    """Train a cell in this process, alone or as one of several; return what was logged.

    Args:
        rows: a folder for this process's own copy of the data.
    """
    rows.mkdir(parents=True, exist_ok=True)
    strategy = Spec.of(cell.strategy, "strategy", "strategy")
    made = make(rows, cell, strategy)
    made.data.setup()
    logged: list[tuple[int, dict[str, float]]] = []

    class Recorder:
        def log(self, step: int, values: dict[str, float]) -> None:
            logged.append((step, {name: v for name, v in values.items() if not name.startswith("perf/")}))
            if step == cell.stop - 1:  # the step that follows is the last one
                os.kill(os.getpid(), signal.SIGTERM)

    trainer = {
        "kind": "trainer",
        "max": f"{cell.steps} steps",
        "accelerator": "cpu",
        "devices": int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        "log_every": "1 steps",
        "validate_every": f"{STEPS // 2} steps",
        "checkpoint_every": "100%",
        **cell.trainer,
    }
    result = fit(
        made.task,
        made.data,
        trainer=Spec.of(trainer, "trainer", "trainer"),
        optimizer=Spec.of(cell.optimizer, "optimizer", "optimizer"),
        schedule=Spec.of({"kind": "cosine", "warmup": "2 steps"}, "schedule", "schedule"),
        strategy=strategy,
        seed=5,
        folder=folder / "checkpoints",
        resume_from=Path(cell.resume) if cell.resume else None,
        recorder=Recorder(),
        show=Lines(io.StringIO()),
    )
    return logged, result


def rank(folder: Path, cells: Sequence[Cell]) -> None:
    """Train several cells one after the other, as one rank; rank 0 writes down what was logged."""
    for number, cell in enumerate(cells):
        logged, result = go(folder / str(number), cell, folder / f"rows{os.environ.get('RANK', 0)}-{number}")
        if os.environ.get("RANK", "0") == "0":
            said = {"rows": logged, "checkpoint": str(result.checkpoint)}
            (folder / f"{number}.json").write_text(json.dumps(said))


def together(folder: Path, world: int, cells: Sequence[Cell]) -> list[Any]:
    """Train cells with that many processes, each cell with all of them; return what rank 0 said of each."""
    folder.mkdir(parents=True, exist_ok=True)
    codes = in_processes(rank, [(folder, cells)] * world, machines(world) if world > 1 else [{}], 400)
    assert codes == [0] * world, codes
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(len(cells))]


def machines(world: int) -> list[dict[str, str]]:
    """Return the environments of processes, two on a machine."""
    envs = ranks(world)
    places = [{"GROUP_RANK": str(i // 2), "LOCAL_RANK": str(i % 2), "LOCAL_WORLD_SIZE": "2"} for i in range(world)]
    return [{**env, **place} for env, place in zip(envs, places, strict=True)]


def curve(said: Any, name: str = "train/loss") -> list[float]:
    """Return one metric's values in the order of steps."""
    return [values[name] for _, values in said["rows"] if name in values]


def largest_difference(said: Any, other: Any, name: str = "train/loss") -> float:
    """Return the largest relative difference of two runs' curves."""
    own, theirs = (torch.tensor(curve(one, name), dtype=torch.float64) for one in (said, other))
    assert len(own) == len(theirs) > 0
    return ((own - theirs).abs() / theirs.abs()).max().item()
