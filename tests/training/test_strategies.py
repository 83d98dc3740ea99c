"""Where a run stands, and what a machine refuses."""

from __future__ import annotations

import os
from typing import Any

import pytest

from mlplatform.errors import RunError, SpecError
from mlplatform.registry import Spec
from mlplatform.training.engine import preflight
from mlplatform.training.strategies import Place


def spec(group: str, **fields: Any) -> Spec:
    return Spec.of(fields, group, group)


def test_finds_the_cpu_and_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Place.find("cpu", 1) == Place("cpu", 1, 0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Place.find("cpu", 1) == Place("cpu", 1, 3, 4)


@pytest.mark.parametrize(
    ("trainer", "strategy", "says"),
    [
        ({"devices": 640}, "ddp", rf"trainer\.devices: 640 are asked .* machine has {os.cpu_count()} CPU"),
        ({"devices": 2}, "single", r"trainer\.devices: strategy=single runs on one device and trainer\.devices=2"),
        ({"accelerator": "cuda"}, "ddp", r"trainer\.accelerator: this machine has no CUDA"),
    ],
)
def test_refuses_before_anything_is_built(trainer: dict[str, Any], strategy: str, says: str) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("made for a machine without CUDA")
    with pytest.raises(SpecError, match=says):
        preflight(spec("trainer", kind="trainer", max="1 steps", **trainer), spec("strategy", kind=strategy))


def test_lengths_that_do_not_fit_are_found_before_there_is_data() -> None:
    trainer, strategy = spec("trainer", kind="trainer", max="1M tokens"), spec("strategy", kind="single")
    preflight(trainer, strategy, spec("schedule", kind="cosine", warmup="10K tokens"))
    preflight(trainer, strategy, spec("schedule", kind="cosine", warmup="9 epochs"))  # can't be known yet
    with pytest.raises(SpecError, match=r"schedule\.warmup: '10 steps' is in steps and trainer\.max='1M tokens'"):
        preflight(trainer, strategy, spec("schedule", kind="cosine", warmup="10 steps"))


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "tp"])
def test_says_how_to_start_several_processes(kind: str) -> None:
    place = Place("cpu", 2)
    with pytest.raises(RunError, match=r"torchrun --nproc-per-node=2 -m mlplatform\.worker"):
        spec("strategy", kind=kind).build().build(place, spec("strategy", kind=kind).build().share(place))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max": "0 steps"}, "max='0 steps' must be more than nothing"),
        ({"max": "5%"}, "max='5%' must be more than nothing, in steps, tokens, epochs or time"),
        ({"max": "10 stepps"}, "max"),
        ({"max": "10 steps", "log_every": "0 steps"}, r"trainer\.log_every: '0 steps' must be more than nothing"),
    ],
)
def test_lengths_that_are_none(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        spec("trainer", kind="trainer", **fields).build().plan(10.0)
