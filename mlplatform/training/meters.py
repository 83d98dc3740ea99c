"""How fast a run goes: tokens per second, share of the device's peak, time lost waiting for data, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch

PEAKS = {
    "B200": (2250.0, 75.0),
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "A40": (149.7, 37.4),
    "A30": (165.0, 10.3),
    "A10G": (70.0, 31.5),
    "A10": (125.0, 31.2),
    "L40S": (362.0, 91.6),
    "L40": (181.0, 90.5),
    "L4": (121.0, 30.3),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
    "MI300X": (1307.4, 163.4),
    "MI250X": (191.5, 23.9),
}
"""Makers' dense peaks in TFLOP/s, (16-bit with fp32 sums, fp32), by a part of the device's name; longer names first."""


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Return a device's peak in FLOP/s, or None when it isn't in the table."""
    for name in sorted(PEAKS, key=len, reverse=True):
        if name.lower() in device_name.lower():
            return PEAKS[name][dtype == torch.float32] * 1e12
    return None


class Feed:
    """The train loader as Lightning sees it, with the time each fetch took.

    Its length says that it never ends, so that Lightning has one endless epoch and fetches nothing ahead: what was
    delivered is what was trained on.

    Args:
        watched: stands between the loader and who waits for it.
    """

    def __init__(
        self,
        loader: Any,
        now: Callable[[], float] = time.monotonic,
        watched: Callable[[Any], Iterator[Any]] = iter,
    ) -> None:
        self.loader, self.now, self.watched = loader, now, watched
        self.began = self.waited = 0.0

    def __len__(self) -> int:
        return 2**40

    def __iter__(self) -> Iterator[Any]:
        batches = self.watched(self.loader)
        while True:
            self.began = self.now()
            batch = next(batches)
            self.waited = self.now() - self.began
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's state."""
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the loader's state."""
        self.loader.load_state_dict(state)


class Speed:
    """Sums over the steps since the last report. Time counts from fetching a batch to the end of its step, so
    validation and saving don't slow a run's tokens per second.

    Args:
        flops_per_token: forward and backward, of one token; None when unknown.
        peak: FLOP/s of all devices of the run together; None when unknown.
    """

    def __init__(self, flops_per_token: float | None, peak: float | None) -> None:
        self.flops_per_token, self.peak = flops_per_token, peak
        self.tokens, self.seconds, self.waited = 0, 0.0, 0.0

    def add(self, tokens: int, seconds: float, waited: float) -> None:
        """Count one step: tokens of all ranks, its whole time, and the part of it spent waiting for data."""
        self.tokens, self.seconds, self.waited = self.tokens + tokens, self.seconds + seconds, self.waited + waited

    def report(self) -> dict[str, float]:
        """Return the metrics and begin anew. `perf/data_wait` is a share of the time, `perf/mfu` of the peak."""
        if self.seconds <= 0:
            return {}
        rate = self.tokens / self.seconds
        values = {"perf/tokens_per_second": rate, "perf/data_wait": self.waited / self.seconds}
        if self.flops_per_token is not None and self.peak is not None:
            values["perf/mfu"] = rate * self.flops_per_token / self.peak
        self.tokens, self.seconds, self.waited = 0, 0.0, 0.0
        return values


def memory_gb(device: torch.device) -> float:
    """Return the most memory held so far on a CUDA device, or the process's memory now on a CPU, in 10^9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process().memory_info().rss / 1e9
