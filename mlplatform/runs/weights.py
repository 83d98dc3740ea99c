"""Where a run's weights come from: its own checkpoints, and what `init_from` and `init_parts` name."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlplatform.errors import CheckpointError, SpecError, did_you_mean, listing
from mlplatform.interop import fetch
from mlplatform.interop.checkpoint_files import read_json
from mlplatform.interop.loading import Opened, put
from mlplatform.interop.parts import kept_of
from mlplatform.models import build
from mlplatform.models.start import Drawn, Over, Read, Start
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


class Whole:
    """All of a model that has no memory yet, in main memory (models/start.py's Holder)."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.to_empty(device="cpu")

    def lend(self, module: nn.Module, deep: bool) -> contextlib.AbstractContextManager[None]:
        """Change nothing: everything is here."""
        return contextlib.nullcontext()

    def put(self, name: str, whole: Tensor) -> None:
        """Take a tensor as it is, where its type allows: pages of a file are then read as they are used."""
        put(self.model, name, (whole.float() if whole.is_floating_point() else whole).contiguous())

    def whole(self, name: str) -> Tensor:
        """Return a parameter."""
        return self.model.get_parameter(name)


def start_of(spec: dict[str, Any], source: str | None, parts: Mapping[str, str], seed: int = 0) -> nn.Module:
    """Build a model with the weights training starts from; arguments and errors of `first_values`."""
    model = build(spec, device="meta")
    return given(model, first_values(model, source, parts, seed))


def given(model: nn.Module, start: Start, later: bool = False) -> nn.Module:
    """Give a model on the meta device its values; or let whoever divides it fill it, later."""
    if later:
        model.first_values = start  # type: ignore[assignment]
    else:
        start.fill(model, Whole(model))
    return model


def likewise(model: nn.Module, other: nn.Module, start: Callable[[], Start]) -> nn.Module:
    """Give a model on the meta device its values as another got its own: now, later, or never."""
    if next(model.parameters()).is_meta and not hasattr(model, "first_values"):
        return other
    return given(other, start(), later=hasattr(model, "first_values"))


def first_values(model: nn.Module, source: str | None, parts: Mapping[str, str], seed: int = 0) -> Start:
    """Return how a model on the meta device gets the values training starts from.

    Args:
        source: what `init_from` names; None draws them. parts: what `init_parts` names.

    Raises:
        CheckpointError: one of them is missing, damaged or of another model. SpecError: the model lacks a part.
    """
    start: Start = values_of(model, source, seed) if source else Drawn(seed)
    for path, place in parts.items():
        start = Over(start, _part(model, path, place))
    return start


class Source(NamedTuple):
    """What `init_from` names: the model there, and its tensors, read when they are asked for.

    Args:
        fresh: parts of the model that it has no weights for.
    """

    spec: dict[str, Any]
    shapes: dict[str, torch.Size]
    tensors: Callable[[], Iterable[tuple[str, Tensor]]]
    fresh: Collection[str] = ()


def values_of(model: nn.Module, source: str, seed: int = 0) -> Read:
    """Return how a model on the meta device gets what `init_from` names; warn of values that differ between the two.

    A head that is not among them, or has other sizes there, is a new one: it is initialised, and said so.

    Args:
        seed: of a new head.

    Raises:
        CheckpointError: the source is missing, damaged or of another model.
    """
    found, spec = source_of(source, model.spec), model.spec  # type: ignore[arg-type]
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


def source_of(source: str, *specs: dict[str, Any], as_filed: bool = False) -> Source:
    """Open a run, or a folder of Hugging Face's format, which is read by the spec of its type or the first.

    Args:
        as_filed: with the head the files have, whatever the spec says: one they lack is no new one then.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        folder = fetch(source)
    if not (folder / "run.json").is_file():
        return _files(folder, specs, as_filed)
    if read_config(folder).get("adapter"):
        return _merged(folder)
    checkpoint = last_checkpoint(folder)
    weights = weights_of(checkpoint)
    shell = shell_of(folder, checkpoint, weights)
    return Source(shell.spec, _shapes(shell), weights.items)  # type: ignore[arg-type]


def _merged(folder: Path) -> Source:
    """Open a run of an adapter: merging needs the whole of it, which is let go as it is read."""
    made = [load_run(folder, dtype=torch.float32)]
    spec, shapes = made[0].spec, _shapes(made[0])

    def tensors() -> Iterable[tuple[str, Tensor]]:
        return (made.pop() if made else load_run(folder, dtype=torch.float32)).state_dict().items()

    return Source(spec, shapes, tensors)  # type: ignore[arg-type]


def _files(folder: Path, specs: Sequence[dict[str, Any]], as_filed: bool) -> Source:
    kind = read_json(folder / "config.json").get("model_type")
    chosen = next((spec for spec in specs if (spec.get("hf") or {}).get("model_type") == kind), specs[0])
    opened = Opened(folder, lambda _: chosen, None if as_filed or chosen is not specs[0] else chosen.get("head"))
    opened.told_of_fresh()

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in opened.tensors():
            if int(os.environ.get("RANK", 0)) == 0:  # one of those that read them looks at them
                opened.look_at(name, tensor)
            yield name, tensor

    return Source(opened.model.spec, _shapes(opened.model), tensors, opened.fresh)  # type: ignore[arg-type]


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _part(model: nn.Module, path: str, source: str) -> Callable[[], Iterator[tuple[str, Tensor]]]:
    """Return what gives a part of a model the weights of another: a detector's backbone, a model's towers.

    A source that has a part of that path gives that one; any other gives all it has but its head. A CLIP's last norm
    is part of its head, and of LLaVA's tower. What a source has no weights for stays as it is.

    Raises:
        SpecError: the model has no such part.
        CheckpointError: the source is missing, damaged, or of other sizes.
    """
    key, prefix = f"init_parts.{path}", f"{path}."
    spec: Any = model.spec
    ours = {name.removeprefix(prefix): shape for name, shape in _shapes(model).items() if name.startswith(prefix)}
    inner = reduce(lambda found, name: (found or {}).get(name), path.split("."), spec)
    if not ours or not isinstance(inner, Mapping):
        parts = [name for name, _ in model.named_children()]
        told = f"the model has no such part{did_you_mean(path, parts)}; it has {listing(parts)}"
        raise SpecError(problems=[(key, told)])
    found = source_of(source, dict(inner), spec)
    inside = prefix if any(name.startswith(prefix) for name in found.shapes) else ""
    fresh = tuple(f"{part}." for part in found.fresh)
    wanted: dict[str, str] = {}
    for name, shape in ours.items():
        if name.startswith(HEAD):
            continue
        theirs = inside + name
        if theirs not in found.shapes:
            theirs = inside + name.replace("trunk.final_norm.", f"{HEAD}norm.")
        if found.shapes.get(theirs) != shape:
            there = f"is {list(found.shapes[theirs])} there" if theirs in found.shapes else "is not there"
            told = f"{name} {there} and {list(shape)} in this run's model"
            raise CheckpointError(f"{key}={source}: {told}; choose the model's YAML of that size")
        if not theirs.startswith(fresh):
            wanted[theirs] = prefix + name
    return lambda: ((wanted[name], tensor) for name, tensor in found.tensors() if name in wanted)


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return where two models of the same weights compute otherwise: values both state, and blocks only one has."""
    own, given = (leaves({k: v for k, v in spec.items() if k not in ("hf", "heads")}) for spec in (ours, theirs))
    paths = [path for path in own | given if not path.endswith("dropout") and own.get(path) != given.get(path)]
    paths = [path for path in paths if (path in own and path in given) or path.endswith(".kind")]
    return [f"{path}={own.get(path)!r} ({given.get(path)!r} there)" for path in paths]
