"""Where a run's weights come from: its own checkpoints, and what `init_from` names."""

from __future__ import annotations

import json
import logging
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlplatform.errors import CheckpointError, listing
from mlplatform.interop import fetch
from mlplatform.interop.loading import Opened, put
from mlplatform.interop.parts import kept_of
from mlplatform.models import build
from mlplatform.models.building import initialise_module
from mlplatform.models.start import Read
from mlplatform.models.trained import frozen_digest
from mlplatform.registry import Spec
from mlplatform.runs.config_file import leaves, read_config
from mlplatform.training.adapters import merge
from mlplatform.training.checkpoints import STATE, newest_whole
from mlplatform.training.shards import Stored

log = logging.getLogger(__name__)
HEAD = "head."
"""Where the weights of a model's head are."""


def load_run(
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    averaged: bool = True,
    merged: bool = True,
) -> nn.Module:
    """Build the model of a run and give it the weights of its newest whole checkpoint.

    Args:
        averaged: take the averaged weights where the run kept them (they are what validation measured).
        merged: add a run's adapters to the weights they stand on; False leaves them beside these.

    Raises:
        CheckpointError: the run has no whole checkpoint, or what its adapter stands on is gone or another.
    """
    checkpoint = last_checkpoint(folder)
    config = read_config(folder)
    adapter = config.get("adapter")
    weights = weights_of(checkpoint, averaged)
    if not adapter:
        model = shell_of(folder, checkpoint, weights)
        model.load_state_dict({name: weights[name].to(device) for name in weights}, assign=True)
    else:
        model = initial(config["model"], config["init_from"])
        Spec.of(adapter, "adapter", "adapter").build().apply(model)
        _check_base(model, checkpoint, config["init_from"])
        _check_names(checkpoint, {name for name, p in model.named_parameters() if p.requires_grad}, weights)
        model.load_state_dict(dict(weights.items()), strict=False)
        if merged:
            merge(model)
        model.to(device)
    if dtype is not None:
        model.to(dtype)
    _keep_words(model, checkpoint)
    return model.eval()


def last_checkpoint(folder: Path) -> Path:
    """Return a run's newest whole checkpoint. Raises CheckpointError when there is none."""
    checkpoint, notes = newest_whole(folder / "checkpoints")
    if checkpoint is None:
        raise CheckpointError(f"{folder}: no whole checkpoint yet{'; ' + notes[0] if notes else ''}")
    return checkpoint


def weights_of(checkpoint: Path, averaged: bool = True) -> Mapping[str, Tensor]:
    """Return the weights of a checkpoint, each read when it is asked for, whoever wrote it and in however many pieces.

    Args:
        averaged: take the averaged ones where the run kept them.
    """
    plain = Stored(checkpoint, "model")
    return ChainMap(Stored(checkpoint, "ema"), plain) if averaged else plain  # type: ignore[arg-type]


def shell_of(folder: Path, checkpoint: Path, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the model of a run without adapters, on the meta device, in the types of its weights."""
    model = build(read_config(folder)["model"], device="meta")
    _check_names(checkpoint, model.state_dict().keys(), weights)
    stored = Stored(checkpoint, "model").entries
    empty = {name: torch.empty(stored[name].shape, dtype=stored[name].dtype, device="meta") for name in stored}
    model.load_state_dict(empty, assign=True)
    _keep_words(model, checkpoint)
    return model


def _check_names(checkpoint: Path, wanted: Collection[str], weights: Mapping[str, Tensor]) -> None:
    if other := sorted(set(wanted) ^ set(weights)):
        raise CheckpointError(f"{checkpoint}: '{other[0]}' is not in both the weights and the config")


def _keep_words(model: nn.Module, checkpoint: Path) -> None:
    """Keep what config.json says that no rule reads, such as the names of classes."""
    if (checkpoint / "config.json").is_file():
        model.hf_kept = kept_of(json.loads((checkpoint / "config.json").read_text()), model.spec)  # type: ignore


def _check_base(model: nn.Module, checkpoint: Path, source: str) -> None:
    if json.loads((checkpoint / STATE).read_text()).get("base") != frozen_digest(model):
        raise CheckpointError(f"{checkpoint}: its adapter stands on other weights than those of init_from={source} now")


class Source(NamedTuple):
    """What `init_from` names: the model there, and its tensors, read when they are asked for.

    Args:
        fresh: parts of the model that it has no weights for.
    """

    spec: dict[str, Any]
    shapes: dict[str, torch.Size]
    tensors: Callable[[], Iterable[tuple[str, Tensor]]]
    fresh: Collection[str] = ()


def initial(spec: dict[str, Any], source: str, seed: int = 0) -> nn.Module:
    """Build a model with the weights `init_from` names; warn of values that differ between the two.

    A head that is not among them, or has other sizes there, is a new one: it is initialised, and said so.

    Args:
        seed: of a new head.

    Raises:
        CheckpointError: the source is missing, damaged or of another model.
    """
    model, cpu = build(spec, device="meta"), torch.device("cpu")
    start = start_of(model, source, seed)
    for part, number in start.fresh.items():
        initialise_module(model, part, cpu, torch.float32, number)
    for name, tensor in start.tensors():
        put(model, name, (tensor.float() if tensor.is_floating_point() else tensor).contiguous())
    for module in model.modules():
        if hasattr(module, "restore_buffers"):
            module.restore_buffers()  # type: ignore[operator]
    return model


def start_of(model: nn.Module, source: str, seed: int = 0) -> Read:
    """Return how a model on the meta device gets the weights `init_from` names; arguments and errors as of `initial`."""
    found, spec = _source(source, model.spec), model.spec  # type: ignore[arg-type]
    ours: dict[str, torch.Size] = {name: tensor.shape for name, tensor in model.state_dict().items()}
    other = [name for name in (*ours, *found.shapes) if ours.get(name) != found.shapes.get(name)]
    if wrong := [name for name in other if not name.startswith(HEAD)]:
        name = wrong[0]
        raise CheckpointError(
            f"init_from={source}: {name} is {list(found.shapes.get(name, ()))} there and "
            f"{list(ours.get(name, ()))} in this run's model; choose the model's YAML of that size"
        )
    drawn = dict.fromkeys(found.fresh, 0)
    left = {*other, *(name for name in ours if name.startswith(tuple(f"{part}." for part in drawn)))}
    if fresh := [name for name in other if name in ours]:
        log.warning("init_from=%s has no weights for %s: initialised", source, listing(fresh, 3))
        drawn[HEAD[:-1]] = seed
    if differences := _differences(spec, found.spec):  # type: ignore[arg-type]
        log.warning("init_from=%s was made with other values than this run's model: %s", source, listing(differences))
    return Read(lambda: ((name, tensor) for name, tensor in found.tensors() if name not in left), drawn)


def _source(source: str, spec: dict[str, Any]) -> Source:
    """Open what `init_from` names, for a model of that spec."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = fetch(source)
    if not (folder / "run.json").is_file():
        opened = Opened(folder, lambda _: spec, spec.get("head"))
        opened.told_of_fresh()
        shell, tensors, fresh = opened.model, opened.tensors, opened.fresh
    elif read_config(folder).get("adapter"):
        merged = load_run(folder, dtype=torch.float32)
        shell, tensors, fresh = merged, lambda: merged.state_dict().items(), ()
    else:
        checkpoint = last_checkpoint(folder)
        weights = weights_of(checkpoint)
        shell, tensors, fresh = shell_of(folder, checkpoint, weights), weights.items, ()
    shapes = {name: tensor.shape for name, tensor in shell.state_dict().items()}
    return Source(shell.spec, shapes, tensors, fresh)  # type: ignore[arg-type]


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return where two models of the same weights compute otherwise: values both state, and blocks only one has."""
    own, given = (leaves({k: v for k, v in spec.items() if k not in ("hf", "heads")}) for spec in (ours, theirs))
    paths = [path for path in own | given if not path.endswith("dropout") and own.get(path) != given.get(path)]
    paths = [path for path in paths if (path in own and path in given) or path.endswith(".kind")]
    return [f"{path}={own.get(path)!r} ({given.get(path)!r} there)" for path in paths]
