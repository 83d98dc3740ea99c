"""Every process holds the whole model: one device, and data-parallel ranks."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import device, nn

from mlplatform.errors import RunError, SpecError
from mlplatform.models.share import Share
from mlplatform.registry import Spec, block
from mlplatform.training import precision
from mlplatform.training.precision import PrecisionName
from mlplatform.training.strategies.place import Place


class Portions(NamedTuple):
    """Which share of a run's weights, gradients and moments one rank holds."""

    weights: float = 1.0
    gradients: float = 1.0
    moments: float = 1.0


class Arrangement:
    """What all strategies share: how processes divide the data and the model, and what they refuse.

    Attributes:
        precisions: those it can train in, where the device can.
        keeps_some: whether results within a layer can be kept where the rest of it is computed again.
        fills: whether ranks give memory to their own parts of a model that has none yet.
        offload: whether what a rank holds lies in the machine's memory instead of the device's.
        leaves_out: whether a step whose loss is not finite can be left out; an engine that clips as it steps can't.
    """

    kind: str
    keeps_some = True
    fills = False
    offload = False
    leaves_out = True
    precisions: tuple[PrecisionName, ...] = ("fp32", "bf16-mixed", "bf16-true", "fp16-mixed", "fp8")

    def check(self, place: Place, number: PrecisionName = "fp32") -> None:
        """Raise SpecError when a run of those processes can't be arranged so, or not in that precision."""
        if number not in self.precisions:
            told = f"strategy={self.kind} does not train in {number}; take {' or '.join(self.precisions)}"
            raise SpecError(problems=[("trainer.precision", told)])

    def check_model(self, model: nn.Module, optimizer: Spec, place: Place) -> None:
        """Raise SpecError when the model or the optimizer can't be divided so. The model is one on the meta device."""

    def check_blocks(self, model: nn.Module, place: Place) -> None:
        """Raise SpecError when the blocks of a model can't be divided so, be it one that trains or not."""

    def portions(self, model: nn.Module, processes: int) -> Portions:
        """Return how much of a model each of so many ranks holds. The model is one on the meta device."""
        return Portions()

    def share(self, place: Place) -> Share:
        """Return which part of each batch and of the model is this process's."""
        return Share(place.rank, place.processes)

    def plugin(self, number: PrecisionName, device: str) -> Precision:
        """Return Lightning's precision plugin."""
        return precision.plugin(number, device)

    def build(self, place: Place, share: Share, clip_norm: float | None = None) -> Strategy:
        """Return Lightning's strategy."""
        raise NotImplementedError


def started(place: Place) -> None:
    """Raise RunError when several devices are asked for and nobody started their processes."""
    if place.devices > 1 and place.world == 1:
        told = f"trainer.devices={place.devices} and this is the only process; start one for each device"
        command = f"torchrun --nproc-per-node={place.devices} -m mlplatform.worker RUN_FOLDER"
        raise RunError(f"{told}: {command}")


@block("strategy/single")
class Single(Arrangement):
    """One process, one device."""

    def __init__(self) -> None:
        pass

    def check(self, place: Place, number: PrecisionName = "fp32") -> None:
        """Raise SpecError when the run has more than one device."""
        super().check(place, number)
        if place.devices > 1:
            told = f"strategy=single runs on one device and trainer.devices={place.devices}; use strategy=ddp"
            raise SpecError(problems=[("trainer.devices", told)])
        if place.world > 1:
            told = f"single runs on one device and this run has {place.world} processes; use strategy=ddp"
            raise SpecError(problems=[("strategy", told)])

    def build(self, place: Place, share: Share, clip_norm: float | None = None) -> Strategy:
        """Return Lightning's strategy."""
        self.check(place)
        return SingleDeviceStrategy(device("cuda", 0) if place.device == "cuda" else device("cpu"))


@block("strategy/ddp")
class DDP(Arrangement):
    """Every rank holds the whole model; gradients are averaged. arXiv:2006.15704

    Args:
        find_unused_parameters: needed when some parameters take no part in a step; costs a pass over the graph.
    """

    def __init__(self, *, find_unused_parameters: bool = False) -> None:
        self.find_unused_parameters = find_unused_parameters

    def build(self, place: Place, share: Share, clip_norm: float | None = None) -> Strategy:
        """Return Lightning's strategy. Raises RunError when several devices are asked for and nobody started them."""
        started(place)
        return DDPStrategy(
            process_group_backend=place.backend,
            find_unused_parameters=self.find_unused_parameters,
            timeout=timedelta(seconds=place.timeout),
            gradient_as_bucket_view=True,  # gradients lie where they are sent from: no second copy of them
        )
