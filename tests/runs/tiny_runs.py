"""Small real runs that the tests of this floor share: a Llama of 17,000 parameters on scenes of Shakespeare."""

from __future__ import annotations

import contextlib
import gzip
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

from mlplatform.cli.compose import Composed, compose
from mlplatform.data.files import SHIPPED
from mlplatform.runs.launch import prepare, start
from mlplatform.runs.slurm_task import BY_SLURM, begin
from mlplatform.runs.worker import Watch, main
from mlplatform.runs.worker import run as work

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


class Child:
    """`python -m mlplatform.worker` on a folder, in a process that has everything imported already (0.2 s, not 10).

    Args:
        early: as the only task of a Slurm job, which gets this signal before anything of the run is built.
    """

    def __init__(self, run: Path, watch: Watch | None = None, early: int | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["mlplatform.runs.worker", "mlplatform.cli.compose"])
        self.said = run.parent / f"{run.name}.out"
        self.process = context.Process(target=_work, args=(run, watch, self.said, dict(os.environ), early))
        self.process.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def end(self, seconds: float = 120) -> tuple[int, str]:
        """Wait for its end; return its exit code (below 0: the signal that killed it) and what it said."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode or 0, self.said.read_text()


def _work(run: Path, watch: Watch | None, said: Path, environment: dict[str, str], early: int | None) -> None:
    os.environ.update(environment)
    if early is not None:
        os.environ.update({BY_SLURM: "stay", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "0"})
        begin(os.environ)
        os.kill(os.getpid(), early)
    with said.open("w", buffering=1) as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        if watch is not None:
            work(run, watch=watch)
            return
        code = main([str(run)])
    os._exit(code)


def files(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def curves(run: Path) -> list[dict[str, Any]]:
    """Return a run's metrics without what depends on the machine's speed."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")} for row in rows]
