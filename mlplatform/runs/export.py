"""From a run folder on to Hugging Face's format. No Hydra: the folder says all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mlplatform.errors import RunError
from mlplatform.runs.config_file import read_config
from mlplatform.runs.weights import last_checkpoint, load_run, shell_of, weights_of

__all__ = ["export", "export_adapter", "load_run", "load_tokenizer"]


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer a run was trained with."""
    from mlplatform.processors.tokenizer import load

    return load(folder / "tokenizer")


def export(folder: Path, target: Path, dtype: torch.dtype | None = None, shard_size: int | None = None) -> None:
    """Write a run's model and tokenizer as a folder Hugging Face loads; adapters are merged into the weights.

    Without adapters no more is in memory than what becomes one tensor or one fused layer there, however many ranks
    wrote the checkpoint. No process group is needed.

    Args:
        shard_size: bytes a file holds at most; None for the usual.
    """
    from mlplatform.interop import save

    more: dict[str, Any] = {} if shard_size is None else {"shard_size": shard_size}
    if read_config(folder).get("adapter"):
        save(load_run(folder, dtype=dtype), target, tokenizer=load_tokenizer(folder), **more)
        return
    checkpoint = last_checkpoint(folder)
    weights = weights_of(checkpoint)
    model = shell_of(folder, checkpoint, weights)
    if dtype is not None:
        model.to(dtype)
    save(model, target, tokenizer=load_tokenizer(folder), state=weights, **more)


def export_adapter(folder: Path, target: Path) -> int:
    """Write a run's adapter alone, as peft reads it on the model `init_from` names; return its number of parameters.

    Raises:
        RunError: the run has no adapter. SpecError: Hugging Face's model has no place for one.
    """
    from mlplatform.registry import Spec

    config = read_config(folder)
    if not config.get("adapter"):
        raise RunError(f"{folder}: this run has no adapter; leave --adapter away and its whole model is written")
    made = Spec.of(config["adapter"], "adapter", "adapter").build()
    return write_adapter(load_run(folder, merged=False), made, config["init_from"], target)


def write_adapter(model: Any, made: Any, source: str, target: Path) -> int:
    """Write the adapter `made` has put into a model as peft's files; return its number of parameters.

    Args:
        source: where the weights it stands on are, for those who read it.
    """
    from mlplatform.interop.adapters import theirs, write_folder_of
    from mlplatform.training.adapters import adapter_tensors, trained_beside

    found = theirs(model.spec, adapter_tensors(model), trained_beside(model))
    task = None  # of a classifier: peft would want its head trained too
    if getattr(model.head, "task", "") == "causal_lm":
        task = "SEQ_2_SEQ_LM" if hasattr(model, "decoder") else "CAUSAL_LM"
    told = made.config(
        found.modules,
        rank_pattern={name: made.rank * times for name, times in found.ranks.items()},
        alpha_pattern={name: made.alpha * times for name, times in found.ranks.items()},
        modules_to_save=found.whole or None,
        fan_in_fan_out=found.transposed,
        base_model_name_or_path=source,
        task_type=task,
        inference_mode=True,
    )
    write_folder_of(target, found.tensors, told.to_dict())
    return sum(tensor.numel() for tensor in found.tensors.values())
