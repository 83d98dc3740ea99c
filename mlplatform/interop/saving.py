"""From a module to a folder that Hugging Face's `from_pretrained` loads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlplatform.errors import SpecError
from mlplatform.interop.checkpoint_files import write_folder
from mlplatform.interop.loading import groups_of
from mlplatform.interop.parts import head_name, weight_rules, write_config
from mlplatform.interop.weight_rules import WeightRules

SHARD_SIZE = 5 * 10**9
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def save(model: nn.Module, folder: str | Path, *, tokenizer: Any = None, shard_size: int = SHARD_SIZE) -> None:
    """Write config.json and safetensors (and the tokenizer's files) as `save_pretrained` would.

    Args:
        tokenizer: anything with `save(folder)`.
        shard_size: bytes of tensors a file holds at most.

    Raises:
        SpecError: the model's YAML has no `hf:`, or a value Hugging Face's config has no word for.
        CheckpointError: the folder can't be written; nothing in it was changed.
    """
    config = config_json(model)
    write_folder(Path(folder), tensors(model), {"config.json": json.dumps(config, indent=2) + "\n"}, shard_size)
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


def tensors(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield the checkpoint's tensors under their names, one at a time."""
    spec: dict[str, Any] = model.spec  # type: ignore[assignment]
    state = model.state_dict() if state is None else state
    bare = head_name(spec) in ((spec.get("hf") or {}).get("bare") or ())
    rules = WeightRules(weight_rules(spec, bare))
    for piece in rules.plan({name: t.shape for name, t in state.items()}, None):
        yield from piece.to_theirs(state, groups_of(model, piece)).items()
