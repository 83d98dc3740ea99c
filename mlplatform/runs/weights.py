"""Where a run's weights come from: its own checkpoints, and what `init_from` and `init_parts` name."""

from __future__ import annotations

import json
import logging
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlplatform.errors import CheckpointError, SpecError, did_you_mean, listing
from mlplatform.interop import fetch, load
from mlplatform.interop.checkpoint_files import read_json
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
        model = start_of(config["model"], config["init_from"], config.get("init_parts") or {}, config["seed"])
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


def start_of(spec: dict[str, Any], source: str | None, parts: Mapping[str, str], seed: int = 0) -> nn.Module:
    """Build a model with the weights training starts from: `init_from`'s or initial ones, and those of `init_parts`."""
    model = initial(spec, source, seed) if source else build(spec, seed=seed)
    for path, given in parts.items():
        _start_part(model, spec, path, given)
    return model


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
    start = values_of(model, source, seed)
    for part, number in start.fresh.items():
        initialise_module(model, part, cpu, torch.float32, number)
    for name, tensor in start.tensors():
        put(model, name, (tensor.float() if tensor.is_floating_point() else tensor).contiguous())
    for module in model.modules():
        if hasattr(module, "restore_buffers"):
            module.restore_buffers()  # type: ignore[operator]
    return model


def values_of(model: nn.Module, source: str, seed: int = 0) -> Read:
    """Return how a model on the meta device gets what `init_from` names; arguments and errors of `initial`."""
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


@torch.no_grad()
def _start_part(model: nn.Module, spec: Mapping[str, Any], path: str, source: str) -> None:
    """Give a part of a model the weights of another: a detector's backbone, a vision-language model's towers.

    A source that has a part of that path gives that one; any other gives all it has but its head. A CLIP's last norm
    is part of its head, and of LLaVA's tower.

    Raises:
        SpecError: the model has no such part.
        CheckpointError: the source is missing, damaged, or of other sizes.
    """
    key, prefix = f"init_parts.{path}", f"{path}."
    ours = {name.removeprefix(prefix): t for name, t in model.state_dict().items() if name.startswith(prefix)}
    inner = reduce(lambda found, name: (found or {}).get(name), path.split("."), spec)
    if not ours or not isinstance(inner, Mapping):
        parts = [name for name, _ in model.named_children()]
        told = f"the model has no such part{did_you_mean(path, parts)}; it has {listing(parts)}"
        raise SpecError(problems=[(key, told)])
    weights = _loaded(source, dict(inner), dict(spec)).state_dict()
    theirs = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)} or weights
    for name, tensor in ours.items():
        if name.startswith(HEAD):
            continue
        if name not in theirs:
            name = name.replace("trunk.final_norm.", f"{HEAD}norm.")
        if name not in theirs or theirs[name].shape != tensor.shape:
            there = f"is {list(theirs[name].shape)} there" if name in theirs else "is not there"
            told = f"{name} {there} and {list(tensor.shape)} in this run's model"
            raise CheckpointError(f"{key}={source}: {told}; choose the model's YAML of that size")
        tensor.copy_(theirs[name])


def _loaded(source: str, *specs: dict[str, Any]) -> nn.Module:
    """Return the model of a run, or of a folder of Hugging Face's format, read by the spec of its type or the first."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = fetch(source)
    if (folder / "run.json").is_file():
        return load_run(folder, dtype=torch.float32)

    kind = read_json(folder / "config.json").get("model_type")
    chosen = next((spec for spec in specs if (spec.get("hf") or {}).get("model_type") == kind), specs[0])
    head = chosen.get("head") if chosen is specs[0] else None
    return load(folder, lambda _: chosen, dtype=torch.float32, head=head)


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return where two models of the same weights compute otherwise: values both state, and blocks only one has."""
    own, given = (leaves({k: v for k, v in spec.items() if k not in ("hf", "heads")}) for spec in (ours, theirs))
    paths = [path for path in own | given if not path.endswith("dropout") and own.get(path) != given.get(path)]
    paths = [path for path in paths if (path in own and path in given) or path.endswith(".kind")]
    return [f"{path}={own.get(path)!r} ({given.get(path)!r} there)" for path in paths]
