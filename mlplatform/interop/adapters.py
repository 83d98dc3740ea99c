"""Adapters under Hugging Face's names: what peft reads on top of their model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlplatform.errors import SpecError
from mlplatform.interop.checkpoint_files import write_folder
from mlplatform.interop.parts import head_name, weight_rules
from mlplatform.interop.tensor_files import entries_of
from mlplatform.interop.weight_rules import Piece, WeightRules
from mlplatform.models import build

Parts = Mapping[str, Tensor]
"""`lora_A` (rank, in), `lora_B` (out, rank) and, of DoRA, `lora_magnitude_vector` (out,)."""
ROOT = "base_model.model."
"""What peft puts before the names of the model it stands on."""


@dataclass
class Theirs:
    """An adapter as peft stores it. `ranks` holds how many times the rank a module has that stands for several."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    """Modules that trained beside the adapters."""
    ranks: dict[str, int] = field(default_factory=dict)
    transposed: bool = False


def theirs(spec: dict[str, Any], adapters: Mapping[str, Parts], whole: Mapping[str, Tensor]) -> Theirs:
    """Return an adapter of one of our models under Hugging Face's names.

    Where theirs is one matrix of several of ours one under the other (GPT-2's q, k and v), so are the adapters: A one
    under the other, B in blocks, and the rank is their sum.

    Args:
        spec: the model's. adapters: by the path of the linear map. whole: what trained beside them, by its name.

    Raises:
        SpecError: the YAML has no `hf.weights`, or a matrix of theirs is none an adapter can stand on.
    """
    if "weights" not in (spec.get("hf") or {}):
        raise SpecError("hf: this model's YAML has no hf.weights, so its adapter can't be written in PEFT's format")
    bare = head_name(spec) in (spec["hf"].get("bare") or ())
    shapes = {name: t.shape for name, t in build(spec, device="meta").state_dict().items()}
    found = Theirs()
    for piece in WeightRules(weight_rules(spec, bare)).plan(shapes, None):
        own = [name.removesuffix(".weight") for name in piece.ours]
        if any(name in adapters for name in own):
            _add(found, piece, own, adapters, shapes)
        if any(name in whole for name in piece.ours):
            _add_whole(found, piece, whole)
    return found


def _add(
    found: Theirs, piece: Piece, own: list[str], adapters: Mapping[str, Parts], shapes: Mapping[str, torch.Size]
) -> None:
    there = [adapters[name] for name in own if name in adapters]
    if {"stacked", "reshaped", "groups"} & piece.op.keys() or (len(own) > 1 and "lora_magnitude_vector" in there[0]):
        what = "DoRA's" if "lora_magnitude_vector" in there[0] else "adapters"
        told = f"'{piece.theirs[0]}' of Hugging Face's is no plain matrix of {', '.join(own)}: {what} can't stand on it"
        raise SpecError(f"{told}; export the run merged, without --adapter")
    module = piece.theirs[0].removesuffix(".weight")
    found.modules.append(module)
    found.transposed |= bool(piece.op.get("transposed"))
    parts = dict(there[0])
    if len(own) > 1:
        parts = {"lora_A": torch.cat([one["lora_A"] for one in there]), "lora_B": _blocks(own, adapters, shapes)}
        found.ranks[module] = len(there)
    for part, tensor in parts.items():
        name = part if part == "lora_magnitude_vector" else f"{part}.weight"
        found.tensors[f"{ROOT}{module}.{name}"] = tensor


def _blocks(own: list[str], adapters: Mapping[str, Parts], shapes: Mapping[str, torch.Size]) -> Tensor:
    """Return B of several matrices one under the other: (rows of all, ranks of those that have one)."""
    there = [adapters[name]["lora_B"] for name in own if name in adapters]
    whole = there[0].new_zeros(sum(shapes[f"{name}.weight"][0] for name in own), sum(b.shape[1] for b in there))
    row = column = 0
    for name in own:
        rows = shapes[f"{name}.weight"][0]
        if name in adapters:
            b = adapters[name]["lora_B"]
            whole[row : row + rows, column : column + b.shape[1]] = b
            column += b.shape[1]
        row += rows
    return whole


def _add_whole(found: Theirs, piece: Piece, whole: Mapping[str, Tensor]) -> None:
    if lacking := [name for name in piece.ours if name not in whole]:
        raise SpecError(f"'{piece.theirs[0]}' of Hugging Face's holds {lacking[0]} too, which did not train")
    for name, tensor in piece.to_theirs(whole, None).items():
        found.tensors[f"{ROOT}{name}"] = tensor
        module = name.rpartition(".")[0]
        if module not in found.whole:
            found.whole.append(module)


def write_folder_of(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write adapter_config.json and adapter_model.safetensors, both or none."""
    kept = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    texts = {"adapter_config.json": json.dumps(kept, indent=2, sort_keys=True, default=str) + "\n"}
    write_folder(folder, entries_of(tensors), tensors.__getitem__, texts, 10**12, name="adapter_model.safetensors")
