"""Small real runs that the training tests share: a Llama of 30,000 parameters on scenes of Shakespeare."""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from free_port import free_port

from mlplatform.data.files import SHIPPED
from mlplatform.data.material import DocumentMaterial
from mlplatform.data.module import DataModule
from mlplatform.data.sources import JSONLines
from mlplatform.models import build
from mlplatform.processors.tokenizer import Tokenizer, train
from mlplatform.registry import Spec, merge
from mlplatform.training.engine import Result, fit
from mlplatform.training.progress import Lines
from mlplatform.training.strategies import Place

VOCABULARY = 300
LLAMA: dict[str, Any] = {
    "kind": "single_tower",
    "trunk": {
        "kind": "transformer",
        "dim": 32,
        "depth": 2,
        "context_length": 64,
        "norm": {"kind": "rms_norm", "eps": 1e-5},
        "input": {"kind": "tokens", "vocab": VOCABULARY},
        "layer": {
            "kind": "pre_norm",
            "attention": {"kind": "attention", "heads": 2, "kv_heads": 1, "rope": {"kind": "rope"}},
            "mlp": {"kind": "gated_mlp", "width": 48, "activation": "silu"},
            "dropout": 0.1,
        },
        "final_norm": True,
    },
    "head": {"kind": "lm_head", "tied": True},
}
BERT: dict[str, Any] = merge(
    LLAMA,
    {
        "trunk": {
            "layer": {"attention": {"mask": "full"}},
        },
        "head": {"kind": "masked_lm_head"},
    },
)


def texts(count: int = 40) -> list[str]:
    """Return scenes of Shakespeare, each cut to 1 to 1500 characters."""
    with gzip.open(SHIPPED / "shakespeare_38plays.txt.gz", "rt", encoding="utf-8") as file:
        parts = file.read(400_000).split("\n\nSCENE ")
    return [part[: 1 + (number * 397) % 1500] for number, part in enumerate(parts[1 : count + 1])]


def write_source(folder: Path) -> Path:
    """Write the scenes as JSON Lines."""
    path = folder / "scenes.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    return path


def tokenizer(kind: str = "causal") -> Tokenizer:
    """Return a byte-level BPE of 300 tokens."""
    return train(texts(10), VOCABULARY, kind)  # type: ignore[arg-type]


class Record:
    """A recorder that keeps what it gets."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.rows.append((step, dict(values)))

    def curve(self, name: str) -> dict[int, float]:
        """Return one metric by step."""
        return {step: values[name] for step, values in self.rows if name in values}

    def exact(self) -> list[tuple[int, dict[str, float]]]:
        """Return everything that does not depend on how fast the machine is."""
        kept = [(step, {n: v for n, v in values.items() if not n.startswith("perf/")}) for step, values in self.rows]
        return [row for row in kept if row[1]]


class Run:
    """One run, or one session of it: `go` trains; the weights, metrics and lines are there to look at."""

    def __init__(
        self, folder: Path, *, model: dict[str, Any] | None = None, task: str = "causal_lm", **options: Any
    ) -> None:
        self.folder, self.options = folder, options
        folder.mkdir(parents=True, exist_ok=True)
        built = build(merge(LLAMA if task == "causal_lm" else BERT, model or {}), seed=1)
        self.task = Spec.of({"kind": task, **options.get("task_options", {})}, "task", "task").build(model=built)
        words = tokenizer("causal" if task == "causal_lm" else "masked")
        shape = {"kind": "rows", "sequences": 4, "micro": 2, "length": 32, **options.get("batch", {})}
        share = self.section("strategy", {"kind": "single"}).build().share(Place.find("cpu", 1))
        source = JSONLines(path=str(write_source(folder)), validation=0.2)
        collator = self.task.collator(words, shape["length"])
        self.data = DataModule(
            DocumentMaterial(source, words), Spec.of(shape, "batch", "batch"), collator, 3, share.number, share.count
        )
        self.data.setup()
        self.record, self.out = Record(), io.StringIO()

    def section(self, group: str, default: dict[str, Any]) -> Spec:
        """Return a config section, the options laid over the default."""
        given = self.options.get(group, {})
        return Spec.of(given if "_target_" in given else merge(default, given), group, group)

    def go(self, resume_from: Path | None = None, **more: Any) -> Result:
        """Train."""
        trainer = {
            "kind": "trainer",
            "max": "12 steps",
            "accelerator": "cpu",
            "log_every": "1 steps",
            "validate_every": "6 steps",
            "checkpoint_every": "4 steps",
        }
        return fit(
            self.task,
            self.data,
            trainer=self.section("trainer", trainer),
            optimizer=self.section("optimizer", {"kind": "adamw", "lr": 1e-2}),
            schedule=self.section("schedule", {"kind": "cosine", "warmup": "25%"}),
            strategy=self.section("strategy", {"kind": "single"}),
            resume_from=resume_from,
            show=Lines(self.out),
            **{"seed": 5, "folder": self.folder / "checkpoints", "recorder": self.record, **more},
        )

    def weights(self) -> dict[str, torch.Tensor]:
        """Return copies of the model's weights."""
        return {name: tensor.clone() for name, tensor in self.task.model.state_dict().items()}


def in_process(target: Callable[..., None], *arguments: Any, env: dict[str, str] | None = None) -> int:
    """Run a function in a process of its own and return its exit code (-9 when it was killed)."""
    return in_processes(target, [arguments], [env or {}])[0]


def in_processes(
    target: Callable[..., None],
    arguments: list[tuple[Any, ...]],
    envs: list[dict[str, str]],
    seconds: float = 120,
) -> list[int]:
    """Run several at once. They come from a server that has Lightning loaded already, so each starts in 0.1 s."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch", "training_runs"])
    processes = [
        context.Process(target=_with_environment, args=({**os.environ, **env}, target, given))
        for given, env in zip(arguments, envs, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode or 0 for process in processes]


def _with_environment(env: dict[str, str], target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(env)
    torch.set_num_threads(1)
    target(*arguments)


def ranks(world: int) -> list[dict[str, str]]:
    """Return the environments torchrun would give the processes of one machine."""
    both = {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "TORCHELASTIC_RUN_ID": "test",
        "GROUP_RANK": "0",
    }
    return [{**both, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
