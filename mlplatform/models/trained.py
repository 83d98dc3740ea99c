"""What of a model trains, and what it stands on: a run of adapters saves only the first."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mlplatform.models.share import Share


def trained_names(model: nn.Module) -> set[str]:
    """Return the names of the parameters that take a gradient."""
    return {name for name, p in model.named_parameters() if p.requires_grad}


def frozen_digest(model: nn.Module, share: Share | None = None) -> str:
    """Return a hash of all a model has that does not train: names, types and every byte.

    Args:
        share: how ranks divide the model; all of them call it.
    """
    trained, digest = trained_names(model), hashlib.sha256()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in trained:
            digest.update(f"{name} {tensor.dtype}".encode())
            digest.update(_bytes((share or Share()).whole(tensor)))
    return digest.hexdigest()


@contextlib.contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Let a model compute as it did before it got its adapter, without dropout; what trains beside that has changed."""
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "enable_adapters")]
    was_training = model.training
    model.eval()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        model.train(was_training)


def adapter_alone(model: nn.Module) -> bool:
    """Whether nothing but an adapter trains, so that without it the model is the one it began as."""
    return getattr(model, "adapted", False) and all(".lora_" in name for name in trained_names(model))


def _bytes(tensor: Tensor) -> Any:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
