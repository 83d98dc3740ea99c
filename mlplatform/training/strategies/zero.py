"""ZeRO: an optimizer's moments, gradients and weights in flat pieces, by DeepSpeed. arXiv:1910.02054"""

from __future__ import annotations

import importlib.util
import os
from datetime import timedelta
from typing import Any

from lightning.pytorch.plugins import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import Strategy
from torch import nn

from mlplatform.errors import SpecError
from mlplatform.models.share import Share
from mlplatform.registry import Positive, Spec, block
from mlplatform.training import precision
from mlplatform.training.precision import PrecisionName
from mlplatform.training.strategies.place import Place
from mlplatform.training.strategies.replicated import Arrangement, Portions, started
from mlplatform.training.strategies.sharded import ELEMENTWISE


class ZeRO(Arrangement):
    """What the three stages share."""

    stage: int
    leaves_out = False
    precisions: tuple[PrecisionName, ...] = ("fp32", "bf16-mixed")

    def check(self, place: Place, number: PrecisionName = "fp32") -> None:
        """Raise SpecError for one device, a precision ZeRO lacks, or a machine without DeepSpeed."""
        super().check(place, number)
        if importlib.util.find_spec("deepspeed") is None:
            told = f"strategy={self.kind} needs DeepSpeed: pip install 'mlplatform[deepspeed]'"
            raise SpecError(problems=[("strategy", told)])
        if place.processes == 1:
            told = f"strategy={self.kind} divides a run among devices and trainer.devices=1; set it to 2 or more"
            raise SpecError(problems=[("trainer.devices", f"{told}, or use strategy=single")])

    def check_model(self, model: nn.Module, optimizer: Spec, place: Place) -> None:
        """Raise SpecError when the optimizer reads whole matrices: ZeRO's pieces are flat."""
        name = optimizer.data.get("_target_", optimizer.kind).rpartition(".")[2]
        if name not in ("adamw", *ELEMENTWISE):
            told = f"{name} reads whole matrices, and strategy={self.kind} keeps them in flat pieces"
            raise SpecError(problems=[("optimizer", f"{told}; use optimizer=adamw, or strategy=fsdp with muon")])

    def portions(self, model: nn.Module, processes: int) -> Portions:
        """Return a part of the moments, from stage 2 on of the gradients, and at stage 3 of the weights."""
        part = 1 / processes
        return Portions(part if self.stage > 2 else 1.0, part if self.stage > 1 else 1.0, part)

    def share(self, place: Place) -> Share:
        """Return which part of each batch is this process's."""
        from mlplatform.training.sharding.zero import ZeroShare

        if place.device == "cpu":  # else DeepSpeed looks for a device, and warns on every rank that there is none
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        return ZeroShare(place.rank, place.processes, self.options())

    def plugin(self, number: PrecisionName, device: str) -> Precision:
        """Return Lightning's precision plugin for DeepSpeed: in bf16-mixed all computes in bf16, on weights in fp32."""
        precision.check(number, device)
        return DeepSpeedPrecision("bf16-mixed" if number == "bf16-mixed" else "32-true")

    def options(self) -> dict[str, Any]:
        """Return DeepSpeed's own options of the stage."""
        return {"stage": self.stage}

    def build(self, place: Place, share: Share, clip_norm: float | None = None) -> Strategy:
        """Return Lightning's strategy. Raises RunError when nobody started the processes."""
        from mlplatform.training.sharding.zero import ZeroShare, ZeroStrategy

        started(place)
        assert isinstance(share, ZeroShare)
        strategy = ZeroStrategy(share, place.backend, self.options(), clip_norm)
        strategy._timeout = timedelta(seconds=place.timeout)
        return strategy


@block("strategy/zero1")
class Zero1(ZeRO):
    """Each rank keeps and steps a part of the optimizer's moments."""

    stage = 1

    def __init__(self) -> None:
        pass


@block("strategy/zero2")
class Zero2(ZeRO):
    """A part of the gradients too.

    Args:
        offload: moments lie in the machine's memory, and are stepped there.
    """

    stage = 2

    def __init__(self, *, offload: bool = False) -> None:
        self.offload = offload

    def options(self) -> dict[str, Any]:
        """Return DeepSpeed's own options of the stage."""
        return {"stage": 2, **({"offload_optimizer": {"device": "cpu"}} if self.offload else {})}


@block("strategy/zero3")
class Zero3(ZeRO):
    """A part of the weights too; they are gathered as they are used.

    Args:
        offload: moments and weights lie in the machine's memory.
        keep: weights of at most so many numbers stay whole.
    """

    stage = 3
    keeps_some = False
    fills = True

    def __init__(self, *, offload: bool = False, keep: Positive = 100_000) -> None:
        self.offload, self.keep = offload, keep

    def options(self) -> dict[str, Any]:
        """Return DeepSpeed's own options of the stage."""
        away = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}} if self.offload else {}
        return {"stage": 3, "stage3_param_persistence_threshold": self.keep, **away}
