"""Each precision trains, computes in the type it says, and goes on exactly."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_runs import LLAMA, Run

from mlplatform.errors import SpecError
from mlplatform.models import build
from mlplatform.registry import merge
from mlplatform.training import precision

TABLE = [
    ("fp32", torch.float32, torch.float32, torch.float32),
    ("bf16-mixed", torch.float32, torch.bfloat16, torch.float32),
    ("fp16-mixed", torch.float32, torch.float16, torch.float32),
    ("bf16-true", torch.bfloat16, torch.bfloat16, torch.bfloat16),
]


@pytest.mark.parametrize(("name", "weights", "products", "moments"), TABLE)
def test_trains_in_its_types_and_goes_on_exactly(
    tmp_path: Path, name: Any, weights: torch.dtype, products: torch.dtype, moments: torch.dtype
) -> None:
    options: dict[str, Any] = {"trainer": {"precision": name, "max": "8 steps"}}
    run = Run(tmp_path, **options)
    seen: set[torch.dtype] = set()
    run.task.model.trunk.layers[0].attention.q.register_forward_hook(lambda *args: seen.add(args[2].dtype))
    run.go()
    assert seen == {products} == {precision.compute_dtype(name)}
    assert {tensor.dtype for tensor in run.weights().values()} == {weights}
    saved = load_file(tmp_path / "checkpoints/step=00000008/optimizer.safetensors")
    assert {tensor.dtype for key, tensor in saved.items() if key.startswith("exp_avg")} == {moments}
    losses = run.record.curve("train/loss")
    assert losses[8] < losses[1] - 0.5
    resumed = Run(tmp_path, **options)
    resumed.go(tmp_path / "checkpoints/step=00000004")
    assert resumed.record.exact() == [row for row in run.record.exact() if row[0] > 4]
    assert all(torch.equal(tensor, resumed.weights()[key]) for key, tensor in run.weights().items())


def test_the_same_loss_to_the_precision(tmp_path: Path) -> None:
    first = {}
    for name in ("fp32", "bf16-mixed", "fp16-mixed", "bf16-true"):
        run = Run(tmp_path / name, trainer={"precision": name, "max": "1 steps", "validate_every": None})
        run.go()
        first[name] = run.record.rows[0][1]
    for name, tolerance in (("bf16-mixed", 1e-2), ("fp16-mixed", 1e-3), ("bf16-true", 2e-2)):
        for metric in ("train/loss", "train/grad_norm"):
            assert first[name][metric] == pytest.approx(first["fp32"][metric], rel=5 * tolerance), (name, metric)


def test_fp16_skips_steps_that_overflow_and_finds_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = functools.partial(torch.amp.GradScaler, init_scale=2.0**24)
    monkeypatch.setattr(torch.amp, "GradScaler", large)
    options: dict[str, Any] = {"trainer": {"precision": "fp16-mixed", "clip_norm": 0.1}}
    run = Run(tmp_path, **options)
    before, changed = run.weights(), {}

    class Watch:
        def log(self, step: int, values: dict[str, float]) -> None:
            if "train/loss" in values:
                changed[step] = any(not torch.equal(tensor, before[name]) for name, tensor in run.weights().items())
                before.update(run.weights())
            run.record.log(step, values)

    run.go(recorder=Watch())
    norms = run.record.curve("train/grad_norm")
    assert changed == {step: math.isfinite(norm) for step, norm in norms.items()}
    assert not changed[1]
    assert changed[12]
    assert all(torch.isfinite(tensor).all() for tensor in run.weights().values())
    resumed = Run(tmp_path, **options)
    resumed.go(tmp_path / "checkpoints/step=00000008")  # the scale it found comes back too
    assert all(torch.equal(tensor, resumed.weights()[key]) for key, tensor in run.weights().items())


def test_a_gpu_without_bf16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(SpecError, match=r"trainer\.precision: Tesla T4 has no bf16-mixed; take fp16-mixed or fp32"):
        precision.check("bf16-mixed", "cuda")
    precision.check("fp16-mixed", "cuda")
    precision.check("bf16-mixed", "cpu")


def test_products_in_8_bits_keep_names_and_nearly_the_numbers() -> None:
    """torchao computes as the 8 bits of a Hopper would, in software: the conversion itself runs here."""
    model = build(merge(LLAMA, {"trunk": {"layer": {"dropout": 0.0}}}), seed=1)
    ids = torch.randint(0, 300, (2, 32), generator=torch.Generator().manual_seed(0))
    names, expected = list(model.state_dict()), model(input_ids=ids, labels=ids)
    precision.in_8_bits(model.trunk.layers, emulate=True)  # type: ignore[union-attr, arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        found = model(input_ids=ids, labels=ids)
    found.loss.backward()
    assert list(model.state_dict()) == names
    assert "Float8" in type(model.trunk.layers[0].mlp.up).__name__  # type: ignore[union-attr, index]
    gap = (found.logits.float() - expected.logits).norm() / expected.logits.norm()
    assert 1e-4 < gap < 0.1
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
