"""Going on with a run that stopped, in its own folder."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mlplatform.errors import CheckpointError, RunError, listing
from mlplatform.models.trained import trained_names
from mlplatform.registry import Spec, validate
from mlplatform.runs import record
from mlplatform.runs.config_file import check_complete, leaves, masked_paths, put, read_config, read_shown, write_config
from mlplatform.runs.experiment import Experiment
from mlplatform.runs.folder import held
from mlplatform.runs.launch import start
from mlplatform.tasks.task import check_weights
from mlplatform.training.checkpoints import checkpoints
from mlplatform.training.shards import Stored

CHANGEABLE = (
    "trainer.max",
    "trainer.keep",
    "trainer.keep_best",
    "trainer.log_every",
    "trainer.validate_every",
    "trainer.checkpoint_every",
    "trainer.devices",
    "trainer.restarts",
    "trainer.on_bad_loss.kind",
    "trainer.on_bad_loss.most",
    "batch.workers",
    "batch.timeout",
    "strategy.*",
    "launcher.*",
)
"""Keys that don't change what the run computes up to its old end."""


def resume(folder: Path, changes: dict[str, Any]) -> record.Status:
    """Go on with a run from its newest whole checkpoint.

    Args:
        changes: dotted keys of the config to change; only those of `CHANGEABLE`, and masked values that this machine
            does not have.

    Raises:
        RunError: the run is finished or still running, or a change would make it another run.
        SpecError: a changed value that can't be.
        CheckpointError: the newest checkpoint is of another model.
    """
    known = record.read(folder)
    before = read_config(folder)
    config, given = _changed(folder, before, changes)
    if known["status"] == "finished" and "trainer.max" not in changes:
        raise RunError(f"{folder}: this run is finished; a longer one: mlplatform resume {folder} trainer.max=...")
    with held(folder):
        _check_weights(folder, config)
        if config != before:
            hidden = masked_paths(read_shown(folder))
            write_config(folder, config, hidden)
            told = {path: value for path, value in given.items() if path not in hidden}
            record.update(folder, changes=[*known.get("changes", []), told])
        record.update(folder, status="running")
    return start(folder)


def _check_weights(folder: Path, config: dict[str, Any]) -> None:
    """Raise CheckpointError when the newest checkpoint's weights are not those of the config's model.

    Only the heads of its files are read: whether it is whole is seen as the run goes on from it.
    """
    found = checkpoints(folder / "checkpoints")
    if not found:
        return
    shell = Spec.of(config, "run").build().shell()
    own = shell.state_dict()
    if getattr(shell, "adapted", False):
        own = {name: own[name] for name in trained_names(shell)}
    with contextlib.suppress(OSError, ValueError, SafetensorError):  # damaged: the one before it is gone on from
        given = Stored(found[-1], "model").entries
        try:
            check_weights(given, own)
        except CheckpointError as error:
            raise CheckpointError(f"{found[-1]}: {error}; a run goes on from its own checkpoints alone") from None


def _changed(folder: Path, before: dict[str, Any], changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the config with the changes, and those that do change something. Raises RunError for refused ones."""
    now = leaves(before)
    given = {path: value for path, value in changes.items() if path not in now or now[path] != value}
    allowed = {*CHANGEABLE, *masked_paths(before)}
    if refused := [p for p in given if p not in allowed and not p.startswith(("strategy.", "launcher."))]:
        shown = leaves(read_shown(folder))
        differences = listing(f"{path}={given[path]!r} (the run has {shown.get(path)!r})" for path in refused)
        raise RunError(
            f"{differences}: that would be another run. A resumed run may change {', '.join(CHANGEABLE)}; "
            f"for anything else start a new one: mlplatform train init_from={folder} ..."
        )
    config = copy.deepcopy(before)
    for path, value in sorted(given.items(), key=lambda one: not one[0].endswith(".kind")):
        block, _, field = path.rpartition(".")
        put(config, *((block, {"kind": value}) if field == "kind" else (path, value)))  # another kind, other fields
    check_complete(folder, config)
    validate(config, "run")
    if any(path.startswith(("strategy.", "trainer.devices")) for path in given):
        experiment: Experiment = Spec.of(config, "run").build()
        experiment.check_processes()
        config["trainer"] = experiment.trainer.data  # with a number of devices
    return config, given
