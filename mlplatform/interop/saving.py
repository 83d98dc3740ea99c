"""From a module to a folder that Hugging Face's `from_pretrained` loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlplatform.errors import SpecError
from mlplatform.interop.checkpoint_files import write_folder
from mlplatform.interop.loading import groups_of
from mlplatform.interop.parts import head_name, weight_rules, write_config
from mlplatform.interop.tensor_files import entries_of
from mlplatform.interop.weight_rules import Piece, WeightRules

SHARD_SIZE = 5 * 10**9
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    shard_size: int = SHARD_SIZE,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write config.json and safetensors (and the tokenizer's files) as `save_pretrained` would.

    Args:
        tokenizer: anything with `save(folder)`.
        shard_size: bytes of tensors a file holds at most.
        state: where the weights are read from, one at a time, for a model on the meta device; they are written in its
            types.

    Raises:
        SpecError: the model's YAML has no `hf:`, or a value Hugging Face's config has no word for.
        CheckpointError: the folder can't be written; nothing in it was changed.
    """
    texts = {"config.json": json.dumps(config_json(model), indent=2) + "\n"}
    own = model.state_dict()
    shell = {name: tensor.to("meta") for name, tensor in own.items()}
    pieces = _plan(model, own)
    made = {name: t for piece in pieces for name, t in piece.to_theirs(shell, groups_of(model, piece)).items()}
    entries, theirs = entries_of(made), _Theirs(model, own if state is None else state, pieces)
    write_folder(Path(folder), entries, lambda name: theirs[name].to(entries[name].dtype), texts, shard_size)
    if tokenizer is not None:
        tokenizer.save(Path(folder))


def config_json(model: nn.Module) -> dict[str, Any]:
    """Return the config.json of a model. Raises SpecError when its YAML can't say one."""
    spec: dict[str, Any] = model.spec  # type: ignore[assignment]
    hf = spec.get("hf") or {}
    if "departs" in hf:
        raise SpecError(f"{hf['departs']}, so this model can't be written in Hugging Face's format")
    if "weights" not in hf and "parts" not in hf:
        raise SpecError("hf: this model's YAML has no hf.weights, so it can't be written in Hugging Face's format")
    config = write_config(spec, getattr(model, "hf_kept", None) or {})
    names = [name for name, head in (hf.get("architectures") or {}).items() if head == head_name(spec)]
    kept = config.get("architectures") or []
    if names and not (kept and kept[0] in names):
        config["architectures"] = names[:1]
    dtype = next(model.parameters()).dtype
    config.pop("torch_dtype", None)
    config["dtype"] = DTYPES.get(dtype, str(dtype).removeprefix("torch."))
    return config


def _plan(model: nn.Module, state: Mapping[str, Tensor]) -> list[Piece]:
    spec: dict[str, Any] = model.spec  # type: ignore[assignment]
    bare = head_name(spec) in ((spec.get("hf") or {}).get("bare") or ())
    return WeightRules(weight_rules(spec, bare)).plan({name: t.shape for name, t in state.items()}, None)


class _Theirs:
    """The checkpoint's tensors by their names, made of ours when they are asked for; the last piece stays at hand."""

    def __init__(self, model: nn.Module, state: Mapping[str, Tensor], pieces: list[Piece]) -> None:
        self.model, self.state = model, state
        self.pieces = {name: piece for piece in pieces for name in piece.theirs}
        self.made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.made:
            self.made = {}  # before the next is read
            piece = self.pieces[name]
            self.made = piece.to_theirs(self.state, groups_of(self.model, piece))
        return self.made[name]
