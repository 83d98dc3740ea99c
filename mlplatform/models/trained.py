"""What of a model trains, and what it stands on: a run of adapters saves only the first."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn


def trained_names(model: nn.Module) -> set[str]:
    """Return the names of the parameters that take a gradient."""
    return {name for name, p in model.named_parameters() if p.requires_grad}


def frozen_digest(model: nn.Module) -> str:
    """Return a hash of all a model has that does not train: names, types and every byte."""
    trained, digest = trained_names(model), hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if name not in trained:
            digest.update(f"{name} {tensor.dtype}".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
