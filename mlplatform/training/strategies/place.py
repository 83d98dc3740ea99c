"""Where a process stands among those of its run."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from torch.distributed.rendezvous import rendezvous

from mlplatform.errors import SpecError

Accelerator = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Place:
    """Where this process stands: its device type, devices of this machine, and ranks of the whole run.

    `timeout` is how many seconds a collective waits for the other ranks.
    """

    device: str
    devices: int
    rank: int = 0
    world: int = 1
    timeout: int = 1800

    @classmethod
    def find(cls, accelerator: Accelerator, devices: int | Literal["auto"]) -> Place:
        """Read the environment.

        Args:
            accelerator: `auto` takes CUDA where there is some. devices: processes on this machine, one device each;
                `auto` for as many as were started here.

        Raises:
            SpecError: this machine has no such device, or not so many.
        """
        device = _device(accelerator)
        if devices == "auto":
            devices = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        there = torch.cuda.device_count() if device == "cuda" else os.cpu_count() or 1
        most = there if device == "cuda" else 2 * there  # processes may share a core: a mesh of four on a laptop
        if there == 0:
            raise SpecError(problems=[("trainer.accelerator", "this machine has no CUDA device; use cpu or auto")])
        if devices > most:
            what = "CUDA device(s)" if device == "cuda" else "CPU core(s)"
            told = f"{devices} are asked for and this machine has {there} {what}; use {most} or less"
            raise SpecError(problems=[("trainer.devices", told)])
        return cls(device, devices, int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    @staticmethod
    def count(accelerator: Accelerator) -> int:
        """Return how many devices of this machine a run takes that is told no number: all GPUs, or two processes."""
        return torch.cuda.device_count() if _device(accelerator) == "cuda" else 2

    @property
    def processes(self) -> int:
        """How many processes the run has, or will have once they are started."""
        return max(self.world, self.devices)

    @property
    def environment(self) -> ClusterEnvironment:
        """Lightning's view of who started this process."""
        return TorchElasticEnvironment() if "RANK" in os.environ else LightningEnvironment()

    @property
    def backend(self) -> str:
        """What the processes talk through."""
        return "nccl" if self.device == "cuda" else "gloo"

    def join(self) -> None:
        """Meet the other processes.

        torchrun's agent keeps its store when it starts them again, and with it the addresses of the dead, so each start
        has names of its own in it.
        """
        if self.world == 1 or dist.is_initialized():
            return
        limit = timedelta(seconds=self.timeout)
        store, rank, world = next(iter(rendezvous("env://", timeout=limit)))
        own = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if self.device == "cuda" else None
        dist.init_process_group(self.backend, store=own, rank=rank, world_size=world, timeout=limit, device_id=device)
        if device is not None:
            atexit.register(dist.destroy_process_group)


def _device(accelerator: Accelerator) -> str:
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return accelerator
