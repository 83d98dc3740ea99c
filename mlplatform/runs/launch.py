"""From a composed config to a run: checks, the folder, then the worker in this process or one per device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from mlplatform.errors import RunError
from mlplatform.registry import Spec
from mlplatform.runs import record
from mlplatform.runs.experiment import Experiment
from mlplatform.runs.export import CONFIG, PRIVATE, read_config
from mlplatform.runs.folder import create, write_whole
from mlplatform.runs.secrets import masked

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def prepare(
    config: dict[str, Any], *, overrides: list[str], argv: list[str], from_environment: Iterable[str] = ()
) -> tuple[Path, Experiment]:
    """Check a config in full, read its data, and make its run folder.

    Raises:
        PlatformError: before anything is written.
    """
    experiment: Experiment = Spec.of(config, "run").build()
    place = experiment.check()
    data = experiment.prepare(place)
    folder = create(experiment.outputs, experiment.experiment)
    write_config(folder, config, from_environment)
    write_whole(folder / "overrides.yaml", yaml.safe_dump(masked_words(overrides), allow_unicode=True))
    trainer = config["trainer"]
    record.begin(
        folder, experiment.experiment, experiment.seed, masked_words(argv), trainer.get("devices", 1), data.record()
    )
    return folder, experiment


def write_config(folder: Path, config: dict[str, Any], from_environment: Iterable[str] = ()) -> None:
    """Write config.yaml with secrets masked; where something was, the whole one for this user's eyes only."""
    shown, hidden = masked(config, from_environment)
    write_whole(folder / CONFIG, yaml.safe_dump(shown, sort_keys=False, allow_unicode=True))
    if hidden:
        write_whole(folder / PRIVATE, yaml.safe_dump(config, sort_keys=False, allow_unicode=True), mode=0o600)


def masked_words(words: list[str]) -> list[str]:
    """Return command-line words with the values of secrets masked."""
    found = []
    for word in words:
        key, equals, value = word.partition("=")
        _, hidden = masked({key.rpartition(".")[2]: value}) if equals else ({}, [])
        found.append(f"{key}=***" if hidden else word)
    return found


def start(folder: Path, experiment: Experiment | None = None) -> record.Status:
    """Run a prepared folder, in this process or as one process per device under torchrun.

    Raises:
        RunError: a rank failed; the record says why.
    """
    from mlplatform.runs.worker import run

    devices = read_config(folder)["trainer"].get("devices", 1)
    if devices == 1:
        return run(folder, experiment)
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={devices}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "mlplatform.worker", str(folder.resolve())]
    environment = {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    code = subprocess.call(command, env=environment)
    found = record.read(folder)
    if code:
        if found["status"] == "running":
            found = record.update(folder, status="failed", error=f"a rank ended with exit code {code}")
        raise RunError(f"{folder}: {found.get('error') or f'a rank ended with exit code {code}'}")
    return found["status"]
