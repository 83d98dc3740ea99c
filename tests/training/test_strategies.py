"""Where a run stands, and what a machine refuses."""

from __future__ import annotations

import os
from typing import Any

import pytest

from mlplatform.cli.compose import compose_model
from mlplatform.errors import RunError, SpecError
from mlplatform.models import build
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


SIX = ("trunk.layer.attention.kv_heads=6",)
FALCON = ["trunk.layer.attention.heads=4", "trunk.layer.attention.kv_heads=1"]


def shell(name: str = "llama_tiny", overrides: tuple[str, ...] = ()) -> Any:
    return build(compose_model(name, list(overrides)).check().config, device="meta")


@pytest.mark.parametrize(
    ("strategy", "processes", "says"),
    [
        ({"kind": "fsdp"}, 1, r"trainer\.devices: strategy=fsdp divides a model .* trainer\.devices=1; set it to 2"),
        ({"kind": "tp"}, 1, r"trainer\.devices: strategy=tp divides"),
        ({"kind": "zero2"}, 1, r"trainer\.devices: strategy=zero2 divides .*strategy=single"),
        ({"kind": "fsdp", "replicate": 4}, 6, r"strategy\.replicate: 4 does not divide the 6 .* may be 2, 3, 6"),
        ({"kind": "fsdp_tp", "tensor": 3}, 4, r"strategy\.tensor: 3 does not divide the 4 processes; it may be 2, 4"),
    ],
)
def test_processes_that_do_not_divide_up(strategy: dict[str, Any], processes: int, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        spec("strategy", **strategy).build().check(Place("cpu", processes))


@pytest.mark.parametrize(
    ("strategy", "processes", "model", "optimizer", "says"),
    [
        (
            "tp",
            4,
            shell("llama_tiny", SIX),
            {"kind": "adamw"},
            r"attention\.heads=6 can't be divided by 4 ranks; 2 ranks would fit",
        ),
        ("tp", 2, shell("resnet"), {"kind": "adamw"}, r"no block of this model can be divided .* use strategy=fsdp"),
        ("ep", 2, shell(), {"kind": "adamw"}, r"this model has none; use strategy=fsdp"),
        ("ep", 3, shell("afmoe_tiny"), {"kind": "adamw"}, r"has 8 experts, which 3 ranks .* it may be 2, 4, 8"),
        ("zero2", 2, shell(), {"kind": "muon"}, r"optimizer: muon reads whole matrices, .* use optimizer=adamw"),
        ("zero1", 2, shell(), {"_target_": "torch.optim.Adafactor"}, r"optimizer: Adafactor reads whole"),
        ("fsdp", 2, shell(), {"kind": "adafactor"}, r"the state of adafactor can't be divided .* use adamw or muon"),
    ],
)
def test_what_a_strategy_cannot_divide(
    strategy: str, processes: int, model: Any, optimizer: dict[str, Any], says: str
) -> None:
    with pytest.raises(SpecError, match=says):
        spec("strategy", kind=strategy).build().check_model(
            model, spec("optimizer", **optimizer), Place("cpu", processes)
        )


def test_numbers_a_strategy_lacks() -> None:
    with pytest.raises(SpecError, match=r"strategy=zero3 does not train in bf16-true; take fp32 or bf16-mixed"):
        spec("strategy", kind="zero3").build().check(Place("cpu", 2), "bf16-true")
    trainer = spec("trainer", kind="trainer", max="1 steps", precision="fp8")
    with pytest.raises(SpecError, match=r"trainer\.precision: fp8 needs a CUDA device of compute capability 8\.9"):
        preflight(trainer, spec("strategy", kind="single"))


def test_which_part_of_the_data_a_rank_reads() -> None:
    def readers(kind: str, world: int, **fields: Any) -> list[tuple[int, int]]:
        made = spec("strategy", kind=kind, **fields).build()
        shares = [made.share(Place("cpu", 2, rank, world)) for rank in range(world)]
        return [(share.number, share.count) for share in shares]

    assert readers("fsdp", 2) == readers("ddp", 2) == readers("zero3", 2) == [(0, 2), (1, 2)]
    assert readers("tp", 2) == [(0, 1), (0, 1)]
    assert readers("fsdp_tp", 4, tensor=2) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert readers("fsdp", 4, replicate=2) == [(n, 4) for n in range(4)]


def test_heads_fewer_than_ranks_are_shared() -> None:
    from mlplatform.training.sharding.layers import check_layers

    model = shell("llama_tiny", tuple(FALCON))
    check_layers(model, 4, "tp")
    with pytest.raises(SpecError, match=r"heads=4 can't be divided by 8 ranks; 2, 4 ranks would fit"):
        check_layers(model, 8, "tp")


@pytest.mark.parametrize(
    ("strategy", "processes", "expected"),
    [
        ({"kind": "ddp"}, 4, (1.0, 1.0, 1.0)),
        ({"kind": "fsdp"}, 4, (0.25, 0.25, 0.25)),
        ({"kind": "fsdp", "replicate": 2}, 4, (0.5, 0.5, 0.5)),
        ({"kind": "zero1"}, 4, (1.0, 1.0, 0.25)),
        ({"kind": "zero2"}, 4, (1.0, 0.25, 0.25)),
        ({"kind": "zero3"}, 4, (0.25, 0.25, 0.25)),
    ],
)
def test_how_much_of_a_model_a_rank_holds(
    strategy: dict[str, Any], processes: int, expected: tuple[float, float, float]
) -> None:
    assert spec("strategy", **strategy).build().portions(shell(), processes) == expected


def test_what_tensor_parallelism_divides_counts_in_part() -> None:
    model = shell()
    layers = sum(p.numel() for p in model.trunk.layers.parameters() if p.ndim == 2)  # norms are whole
    share = layers / sum(p.numel() for p in model.parameters())
    held = spec("strategy", kind="tp").build().portions(model, 2).weights
    assert held == pytest.approx(1 - share / 2)
    both = spec("strategy", kind="fsdp_tp", tensor=2).build().portions(model, 4).weights
    assert both == pytest.approx(held / 2)
