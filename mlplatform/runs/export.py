"""From a run folder to a model with its weights, and on to Hugging Face's format. No Hydra: the folder says all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from mlplatform.errors import CheckpointError
from mlplatform.models import build
from mlplatform.runs.config_file import read_config
from mlplatform.training.checkpoints import newest_whole


def load_run(
    folder: Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None, averaged: bool = True
) -> nn.Module:
    """Build the model of a run and give it the weights of its newest whole checkpoint.

    Args:
        averaged: take the averaged weights where the run kept them (they are what validation measured).

    Raises:
        CheckpointError: the run has no whole checkpoint.
    """
    checkpoint, notes = newest_whole(folder / "checkpoints")
    if checkpoint is None:
        raise CheckpointError(f"{folder}: no whole checkpoint yet{'; ' + notes[0] if notes else ''}")
    model = build(read_config(folder)["model"], device="meta")
    weights = load_file(checkpoint / "model.safetensors", device=str(device))
    if averaged and (checkpoint / "ema.safetensors").is_file():
        weights |= load_file(checkpoint / "ema.safetensors", device=str(device))
    wanted = model.state_dict().keys()
    if wanted != weights.keys():
        name = sorted(wanted ^ weights.keys())[0]
        raise CheckpointError(f"{checkpoint}: '{name}' is not in both the weights and the config")
    model.load_state_dict(weights, assign=True)
    if dtype is not None:
        model.to(dtype)
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer a run was trained with."""
    from mlplatform.processors.tokenizer import load

    return load(folder / "tokenizer")


def export(folder: Path, target: Path, dtype: torch.dtype | None = None) -> None:
    """Write a run's model and tokenizer as a folder Hugging Face loads."""
    from mlplatform.interop import save

    save(load_run(folder, dtype=dtype), target, tokenizer=load_tokenizer(folder))
