"""Speed by a fake clock, the table of peaks, and the feed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from mlplatform.training.meters import PEAKS, Feed, Speed, memory_gb, peak_flops


class Loader:
    """Takes three seconds for a batch."""

    def __init__(self, clock: list[float]) -> None:
        self.clock, self.consumed = clock, 0

    def __iter__(self) -> Iterator[int]:
        while True:
            self.clock[0] += 3
            self.consumed += 8
            yield self.consumed

    def state_dict(self) -> dict[str, Any]:
        return {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.consumed = state["consumed"]


def test_feed_times_each_fetch_and_reads_nothing_ahead() -> None:
    clock = [100.0]
    loader = Loader(clock)
    feed = Feed(loader, lambda: clock[0])
    batches = iter(feed)
    assert next(batches) == 8
    assert (feed.began, feed.waited) == (100.0, 3.0)
    assert feed.state_dict() == {"consumed": 8}
    clock[0] += 50  # a step and a validation
    next(batches)
    assert (feed.began, feed.waited) == (153.0, 3.0)
    feed.load_state_dict({"consumed": 80})
    assert next(iter(feed)) == 88


def test_speed_over_a_window() -> None:
    speed = Speed(flops_per_token=6e9, peak=1e13)
    assert speed.report() == {}
    for _ in range(4):
        speed.add(tokens=500, seconds=2.0, waited=0.5)
    assert speed.report() == {"perf/tokens_per_second": 250.0, "perf/data_wait": 0.25, "perf/mfu": 0.15}
    assert speed.report() == {}  # a new window
    speed.add(tokens=100, seconds=1.0, waited=0.0)
    assert speed.report()["perf/tokens_per_second"] == 100.0


@pytest.mark.parametrize(("flops", "peak"), [(None, 1e13), (6e9, None), (None, None)])
def test_no_utilisation_where_something_is_unknown(flops: float | None, peak: float | None) -> None:
    speed = Speed(flops, peak)
    speed.add(1, 1.0, 0.0)
    assert "perf/mfu" not in speed.report()


@pytest.mark.parametrize(
    ("name", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, 989e12),
        ("NVIDIA H100 PCIe", torch.bfloat16, 756e12),
        ("NVIDIA A100-SXM4-80GB", torch.float16, 312e12),
        ("NVIDIA A100-SXM4-80GB", torch.float32, 19.5e12),
        ("NVIDIA A10G", torch.bfloat16, 70e12),
        ("NVIDIA A10", torch.bfloat16, 125e12),
        ("NVIDIA L40S", torch.bfloat16, 362e12),
        ("NVIDIA L4", torch.bfloat16, 121e12),
        ("Tesla T4", torch.float16, 65e12),
        ("Quadro P2000", torch.bfloat16, None),
    ],
)
def test_peaks_by_device_name(name: str, dtype: torch.dtype, peak: float | None) -> None:
    assert peak_flops(name, dtype) == peak


def test_sixteen_bits_are_never_slower_than_fp32() -> None:
    assert all(half > full > 1 for half, full in PEAKS.values())


def test_memory_of_this_process() -> None:
    before = memory_gb(torch.device("cpu"))
    held = torch.ones(50_000_000)
    assert memory_gb(torch.device("cpu")) - before == pytest.approx(0.2, abs=0.05)
    assert held.sum() == 50_000_000
