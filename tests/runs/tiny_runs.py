"""Small real runs that the tests of this floor share: a Llama of 17,000 parameters on scenes of Shakespeare."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlplatform.cli.compose import Composed, compose
from mlplatform.data.files import SHIPPED
from mlplatform.runs.launch import prepare, start

SMALL = [
    "model.trunk.depth=1",
    "model.trunk.dim=32",
    "model.trunk.layer.attention.heads=2",
    "model.trunk.layer.attention.kv_heads=1",
    "model.trunk.layer.mlp.width=48",
    "model.trunk.layer.dropout=0.1",
    "model.trunk.input.vocab=300",
    "model.trunk.context_length=64",
    "batch.sequences=4",
    "batch.micro=2",
    "batch.length=32",
    "trainer.max='8 steps'",
    "trainer.accelerator=cpu",
    "trainer.log_every='1 steps'",
    "trainer.validate_every='4 steps'",
    "trainer.checkpoint_every='2 steps'",
]
PREPARE = """
import sys
sys.path.insert(0, {here!r})
import tiny_runs
print(tiny_runs.prepared({folder!r}, *{overrides!r}))
"""


def scenes(folder: Path) -> Path:
    """Write 40 scenes of 1 to 1500 characters as JSON Lines, once."""
    path = folder / "scenes.jsonl"
    if not path.exists():
        with gzip.open(SHIPPED / "shakespeare_38plays.txt.gz", "rt", encoding="utf-8") as file:
            parts = file.read(400_000).split("\n\nSCENE ")[1:41]
        texts = [part[: 1 + (number * 397) % 1500] for number, part in enumerate(parts)]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def composed(folder: Path | str, *overrides: str) -> Composed:
    """Return the checked config of a small run whose data and outputs are in a folder."""
    folder = Path(folder)
    places = ["data=jsonl", f"data.path={scenes(folder)}", "data.validation=0.2", f"outputs={folder / 'outputs'}"]
    return compose("train", [*SMALL, *places, *overrides]).check()


def prepared(folder: Path | str, *overrides: str) -> Path:
    """Make the run folder of a small run, ready to be worked."""
    result = composed(folder, *overrides)
    made, _ = prepare(
        result.config,
        overrides=list(overrides),
        argv=["mlplatform", "train", *overrides],
        from_environment=result.from_environment,
    )
    return made


def finished(folder: Path | str, *overrides: str) -> Path:
    """Train a small run to its end in this process and return its folder."""
    run = prepared(folder, *overrides)
    assert start(run) == "finished"
    return run


def worker(run: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `python -m mlplatform.worker` on a prepared folder."""
    command = [sys.executable, "-m", "mlplatform.worker", str(run)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environment})


def files(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def curves(run: Path) -> list[dict[str, Any]]:
    """Return a run's metrics without what depends on the machine's speed."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")} for row in rows]
