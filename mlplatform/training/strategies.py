"""On which devices a run computes, and how its processes share the work.

A strategy never starts processes: whoever launches the run does (torchrun, srun), and says so in the environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy

from mlplatform.errors import RunError, SpecError
from mlplatform.registry import block

Accelerator = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Place:
    """Where this process stands: its device type, devices of this machine, and ranks of the whole run."""

    device: str
    devices: int
    rank: int = 0
    world: int = 1

    @classmethod
    def find(cls, accelerator: Accelerator, devices: int) -> Place:
        """Read the environment.

        Args:
            accelerator: `auto` takes CUDA where there is some. devices: processes on this machine, one device each.

        Raises:
            SpecError: this machine has no such device, or not so many.
        """
        device = accelerator
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        there = torch.cuda.device_count() if device == "cuda" else os.cpu_count() or 1
        if there == 0:
            raise SpecError(problems=[("trainer.accelerator", "this machine has no CUDA device; use cpu or auto")])
        if devices > there:
            what = "CUDA device(s)" if device == "cuda" else "CPU core(s)"
            told = f"{devices} are asked for and this machine has {there} {what}; use {there} or less"
            raise SpecError(problems=[("trainer.devices", told)])
        return cls(device, devices, int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    @property
    def environment(self) -> ClusterEnvironment:
        """Lightning's view of who started this process."""
        return TorchElasticEnvironment() if "RANK" in os.environ else LightningEnvironment()


@block("strategy/single")
class Single:
    """One process, one device."""

    def __init__(self) -> None:
        pass

    def check(self, place: Place) -> None:
        """Raise SpecError when the run has more than one device."""
        if place.devices > 1:
            told = f"strategy=single runs on one device and trainer.devices={place.devices}; use strategy=ddp"
            raise SpecError(problems=[("trainer.devices", told)])
        if place.world > 1:
            told = f"single runs on one device and this run has {place.world} processes; use strategy=ddp"
            raise SpecError(problems=[("strategy", told)])

    def build(self, place: Place) -> Strategy:
        """Return Lightning's strategy."""
        self.check(place)
        return SingleDeviceStrategy(torch.device("cuda", 0) if place.device == "cuda" else torch.device("cpu"))


@block("strategy/ddp")
class DDP:
    """Every rank holds the whole model; gradients are averaged. arXiv:2006.15704

    Args:
        find_unused_parameters: needed when some parameters take no part in a step; costs a pass over the graph.
    """

    def __init__(self, *, find_unused_parameters: bool = False) -> None:
        self.find_unused_parameters = find_unused_parameters

    def check(self, place: Place) -> None:
        """Nothing to refuse: one rank is fine too."""

    def build(self, place: Place) -> Strategy:
        """Return Lightning's strategy. Raises RunError when several devices are asked for and nobody started them."""
        if place.devices > 1 and place.world == 1:
            told = f"trainer.devices={place.devices} and this is the only process; start one for each device"
            command = f"torchrun --nproc-per-node={place.devices} -m mlplatform.worker RUN_FOLDER"
            raise RunError(f"{told}: {command}")
        backend = "nccl" if place.device == "cuda" else "gloo"
        return DDPStrategy(process_group_backend=backend, find_unused_parameters=self.find_unused_parameters)
