"""Ranks that fill their own parts of a model hold what one process has, drawn or read, and never the whole of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from equivalence import TOWERS
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from training_runs import in_processes, ranks

from mlplatform.cli.compose import compose_model
from mlplatform.interop import save
from mlplatform.models import build
from mlplatform.models.start import Drawn, later
from mlplatform.registry import Spec
from mlplatform.runs.weights import first_values, start_of
from mlplatform.training.strategies import Place

pytestmark = pytest.mark.distributed

MODELS = {
    **{name: (tower[0], tower[3]) for name, tower in TOWERS.items()},
    "clip": ("clip_tiny", []),  # scalars
    "detr": ("detr_tiny", []),  # buffers, another library's network, learned slots
    "wav2vec2": ("wav2vec2_tiny", []),  # a kernel whose length is worked out from its direction
}


def spec_of(name: str) -> dict[str, Any]:
    return compose_model(*MODELS[name]).check().config


def divided(model: nn.Module, kind: str) -> nn.Module:
    """Divide a model among the ranks there are."""
    place = Place("cpu", 2, int(os.environ["RANK"]), 2)
    share: Any = Spec.of({"kind": kind}, "strategy", "strategy").build().share(place)
    share.join("cpu")
    share.divide(model)
    assert all(p in set(model.parameters()) for p in share.apart | share.held_alone)
    return model


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def same(model: nn.Module, expected: nn.Module) -> None:
    own, theirs = model.state_dict(), expected.state_dict()
    assert own.keys() == theirs.keys()
    for name, tensor in own.items():
        assert torch.equal(whole(tensor), theirs[name]), name
    flags = {name: p.requires_grad for name, p in expected.named_parameters()}
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def _draw() -> None:
    torch.distributed.init_process_group("gloo")
    for name, kinds in {"afmoe": ("fsdp", "tp", "ep"), "llama": ("fsdp", "tp"), "variety": ("tp",)}.items():
        for kind in kinds:
            same(divided(later(spec_of(name), Drawn(3)), kind), build(spec_of(name), seed=3))
    for name in ("t5", "clip", "detr", "wav2vec2"):
        same(divided(later(spec_of(name), Drawn(3)), "fsdp"), build(spec_of(name), seed=3))


def test_drawn_parts_are_those_of_one_process() -> None:
    assert in_processes(_draw, [()] * 2, ranks(2)) == [0, 0]


def _read(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    cases = [("llama", spec_of("llama")), ("llama", classifier()), ("afmoe", spec_of("afmoe"))]
    for name, spec in cases:
        source = str(folder / name)
        for kind in ("fsdp", "tp"):
            model: Any = build(spec, device="meta")
            model.first_values = values_of(model, source, 7)
            same(divided(model, kind), initial(spec, source, 7))


def classifier() -> dict[str, Any]:
    """The same Llama with a head its file does not have."""
    return compose_model(MODELS["llama"][0], [*MODELS["llama"][1], "head=sequence_classification"]).check().config


def test_read_parts_are_those_of_one_process(tmp_path: Path) -> None:
    for name in ("llama", "afmoe"):
        save(build(spec_of(name), seed=5), tmp_path / name)
    assert in_processes(_read, [(tmp_path,)] * 2, ranks(2)) == [0, 0]
