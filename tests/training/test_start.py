"""Ranks that fill their own parts of a model hold what one process has, drawn or read, and never the whole of it."""

from __future__ import annotations

import logging
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
from mlplatform.interop import load, save
from mlplatform.models import build
from mlplatform.models.start import Drawn, later
from mlplatform.registry import Spec
from mlplatform.runs.weights import first_values, given, start_of
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


def divided(model: nn.Module, kind: str, processes: int = 2) -> nn.Module:
    """Divide a model among the ranks there are."""
    place = Place("cpu", processes, int(os.environ["RANK"]), processes)
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
            same(divided(begun(spec, source), kind), start_of(spec, source, {}, 7))
    for name in ("clip", "detr", "wav2vec2"):
        source = str(folder / name)
        same(divided(begun(spec_of(name), source), "fsdp"), start_of(spec_of(name), source, {}, 7))


def begun(spec: dict[str, Any], source: str | None = None, parts: dict[str, str] | None = None) -> nn.Module:
    """Return a model on the meta device that knows where its values come from."""
    model = build(spec, device="meta")
    return given(model, first_values(model, source, parts or {}, 7), later=True)


def classifier() -> dict[str, Any]:
    """The same Llama with a head its file does not have."""
    return compose_model(MODELS["llama"][0], [*MODELS["llama"][1], "head=sequence_classification"]).check().config


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of Hugging Face's format."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("llama", "afmoe", "clip", "detr", "wav2vec2"):
        save(build(spec_of(name), seed=5), folder / name)
    return folder


def test_read_parts_are_those_of_one_process(sources: Path) -> None:
    assert in_processes(_read, [(sources,)] * 2, ranks(2)) == [0, 0]


# ---- adapters ----

EVERYWHERE = ["*.attention", "*.mlp"]
ADAPTERS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("llama", {"targets": EVERYWHERE}, ("fsdp", "tp")),
    ("llama", {"targets": EVERYWHERE, "dora": True}, ("fsdp", "tp")),
    ("variety", {"targets": EVERYWHERE, "dora": True}, ("tp",)),  # biases, gates, keys and values of one head
    ("classifier", {"train": ["head"]}, ("fsdp",)),
    ("afmoe", {"targets": ["*.attention"], "dora": True}, ("ep",)),
]


def _adapt(folder: Path, cases: list[tuple[str, dict[str, Any], tuple[str, ...]]], processes: int) -> None:
    torch.distributed.init_process_group("gloo")
    for name, fields, kinds in cases:
        spec = classifier() if name == "classifier" else spec_of(name)
        source = None if name == "variety" else str(folder / name.replace("classifier", "llama"))
        adapter: Any = Spec.of({"kind": "lora", "rank": 3, **fields}, "adapter", "adapter").build()
        expected = start_of(spec, source, {}, 7)
        adapter.apply(expected, seed=4)
        for kind in kinds:
            model = begun(spec, source)
            adapter.apply(model, seed=4)
            torch.set_default_dtype(torch.bfloat16)  # as Lightning does then in bf16-true; weights turn into it later
            divided(model, kind, processes)
            torch.set_default_dtype(torch.float32)
            same(model, expected)


def test_adapters_are_those_of_one_process(sources: Path) -> None:
    assert in_processes(_adapt, [(sources, ADAPTERS, 2)] * 2, ranks(2)) == [0, 0]


def test_adapters_on_a_mesh_are_those_of_one_process(sources: Path) -> None:
    cases = [("llama", {"targets": EVERYWHERE, "dora": True}, ("fsdp_tp",))]
    assert in_processes(_adapt, [(sources, cases, 4)] * 4, ranks(4)) == [0] * 4


# ---- parts of other models ----


def _parts(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    cases = [
        ("llama", None, {"trunk": "llama"}),
        ("clip", None, {"vision": "clip", "text": "clip"}),
        ("clip", "clip", {"vision": "other"}),
    ]
    for name, source, places in cases:
        source = str(folder / source) if source else None
        parts = {path: str(folder / place) for path, place in places.items()}
        for kind in ("fsdp",) if name == "clip" else ("fsdp", "tp"):
            same(divided(begun(spec_of(name), source, parts), kind), start_of(spec_of(name), source, parts, 7))


def test_parts_of_other_models_are_those_of_one_process(sources: Path) -> None:
    save(build(spec_of("clip"), seed=6), sources / "other")
    assert in_processes(_parts, [(sources,)] * 2, ranks(2)) == [0, 0]


# ---- what is said ----


def _warned(folder: Path, said: Path) -> None:
    torch.distributed.init_process_group("gloo")
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("mlplatform").addHandler(handler)
    divided(begun(spec_of("llama"), str(folder)), "fsdp")
    (said / os.environ["RANK"]).write_text("\n".join(lines))
    torch.distributed.barrier()  # rank 0 keeps the addresses, which the other may still ask for


def test_one_rank_says_once_that_files_hold_no_numbers(
    sources: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(spec_of("llama"), seed=5)
    with torch.no_grad():
        for layer in (0, 1):  # in rows that rank 1 keeps
            model.get_parameter(f"trunk.layers.{layer}.mlp.up.weight")[-1, 0] = float("nan")
    save(model, tmp_path / "llama")
    assert in_processes(_warned, [(tmp_path / "llama", tmp_path)] * 2, ranks(2)) == [0, 0]
    load(tmp_path / "llama", lambda _: spec_of("llama"))
    assert "'model.layers.0.mlp.up_proj.weight' holds NaN or infinite values" in caplog.text
    assert [(tmp_path / rank).read_text() for rank in "01"] == [caplog.messages[0], ""]
    start_of(spec_of("llama"), str(tmp_path / "llama"), {})
    assert caplog.messages == [caplog.messages[0]] * 2
