"""Lightning's strategy for a model on a mesh. Each rank writes and reads its own parts of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed import distributed_c10d
from torch.optim import Optimizer

from mlplatform.training.sharding.holding import held
from mlplatform.training.sharding.mesh import MeshShare
from mlplatform.training.sharding.states import divided_state, joined_state

set_timeout = getattr(distributed_c10d, "set_timeout", None) or distributed_c10d._set_pg_timeout
"""How long a group's collectives wait; torch 2.13 has the second name alone."""


class MeshStrategy(ModelParallelStrategy):
    """FSDP2, tensor parallelism and experts, as the share says; on CUDA and on CPUs.

    Args:
        backend: what the processes talk through. timeout: how long a collective waits for the other ranks.
    """

    def __init__(self, share: MeshShare, backend: str, timeout: timedelta) -> None:
        super().__init__(share.count, share.sizes.parts, process_group_backend=backend, timeout=timeout)
        self.share, self.timeout = share, timeout

    def setup_environment(self) -> None:
        self._setup_distributed()
        self._device_mesh = mesh = self.share.join(self.root_device.type)
        for group in (*mesh.get_all_groups(), self.share.group):  # a mesh's own groups begin with torch's default
            set_timeout(self.timeout, group)

    def model_to_device(self) -> None:
        if not self.share.offload:
            super().model_to_device()

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return this rank's parts of the weights; nothing is gathered."""
        module: Any = self.lightning_module
        self.share.settle(module.model)
        return module.state_dict()

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module: Any = self.lightning_module
        self.share.settle(module.model)
        own = module.state_dict()
        for name, part in checkpoint["state_dict"].items():
            held(own[name]).copy_(held(part))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        module: Any = self.lightning_module
        return joined_state(getattr(optimizer, "_optimizer", optimizer), module.model)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(divided_state(optimizer, state))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write what this rank holds: every rank does."""
        self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)
