"""Initial values: rules by their formulas, whose scheme a part keeps to, the table of docs/initialisation.md."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import tiny
import torch
import yaml
from torch import nn

from mlplatform import places
from mlplatform.errors import SpecError
from mlplatform.models import build
from mlplatform.models.init import Normal, Uniform, initialise
from mlplatform.places import PACKAGE
from mlplatform.registry import Spec

FILES = {file.stem: file for file in (places.conf() / "model").glob("*.yaml")}
TABLE = (PACKAGE.parent / "docs" / "initialisation.md").read_text(encoding="utf-8")


def spread(values: torch.Tensor, expected: float) -> None:
    assert values.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * values.numel()))


@pytest.mark.parametrize(
    ("over", "expected"),
    [([], 1), ([4], 1 / 2), (["fan_in"], 1 / 8), (["fan_out"], 1 / 10), (["fan_sum"], 1 / math.sqrt(164)),
     (["dim", 2, "depth"], 1 / math.sqrt(32 * 2 * 3)), (["head_dim"], 1 / 4)],
)  # fmt: skip
@pytest.mark.parametrize("kind", [Normal, Uniform])
def test_a_spread_is_what_it_is_over(kind: type[Normal], over: list[Any], expected: float) -> None:
    torch.manual_seed(0)
    matrix, attention, tower = nn.Linear(64, 100), nn.Module(), nn.Module()
    attention.head_dim, tower.dim, tower.depth = 16, 32, 3
    with torch.no_grad():
        kind(std=1.0, over=over).fill(matrix.weight, [matrix, attention, tower])
    spread(matrix.weight, expected)
    bounded = matrix.weight.abs().max() <= expected * math.sqrt(3) * 1.0001
    assert bounded == (kind is Uniform)


def test_a_convolutions_inputs_are_times_its_kernel() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 64, 3)
    with torch.no_grad():
        Normal(std=1.0, over=["fan_in"]).fill(conv.weight, [conv])
        Uniform(std=1.0, over=[3, "fan_in"]).fill(conv.bias, [conv])  # type: ignore[arg-type]
    spread(conv.weight, 1 / 12)
    assert conv.bias is not None
    assert 0.9 / 12 < conv.bias.abs().max() <= 1 / 12


def rules(**parts: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "normal",
        "std": 0.02,
        "parts": {k.replace("__", "."): {"kind": "normal", **v} for k, v in parts.items()},
    }


def test_of_the_patterns_that_fit_the_last_counts() -> None:
    spec = tiny.spec("llama")
    spec["init"] = rules(**{"*.mlp.*": {"std": 0.5}, "trunk.layers.1.*.down.weight": {"std": 0.0}})
    layers: Any = build(spec).trunk.layers
    spread(layers[0].mlp.down.weight, 0.5)
    spread(layers[1].mlp.up.weight, 0.5)
    spread(layers[1].attention.q.weight, 0.02)
    assert not layers[1].mlp.down.weight.any()


def test_a_part_that_is_a_model_keeps_to_its_own_scheme() -> None:
    spec = tiny.dual_tower()
    spec["init"] = {"kind": "normal", "std": 0.1}
    spec["text"]["init"] = rules(**{"trunk.input.table.weight": {"std": 1.0, "over": ["dim", "depth"]}})
    model: Any = build(spec)
    spread(model.text.trunk.input.table.weight, 1 / math.sqrt(32 * 2))
    spread(model.text.trunk.layers[0].mlp.up.weight, 0.02)
    spread(model.vision.trunk.layers[0].mlp.up.weight, 0.1)


def test_a_new_head_starts_by_the_whole_models_rules_and_alone() -> None:
    spec = tiny.spec("llama")
    spec["init"] = rules(**{"head.out.weight": {"std": 1.0, "over": ["dim"]}})
    model: Any = build(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    initialise(model, Spec(spec, "", "model"), under="head")
    spread(model.head.out.weight, 1 / math.sqrt(32))
    assert not any(parameter.any() for name, parameter in model.named_parameters() if not name.startswith("head."))


@pytest.mark.parametrize(("name", "told"), [("head_dim", "has a 'head_dim'"), ("fan_in", "fan_in is a matrix's")])
def test_what_is_not_known_there_is_said(name: str, told: str) -> None:
    spec = tiny.spec("llama")
    spec["init"] = rules(**{"trunk.final_norm.weight": {"over": [name]}})
    with pytest.raises(SpecError, match=told):
        build(spec)


def words(init: dict[str, Any]) -> str:
    """Return a scheme as the table says it."""
    root = f" / sqrt({' '.join(str(name) for name in init['over'])})" if init.get("over") else ""
    mean = f"{init['mean']}, " if init.get("mean") else ""
    parts = "".join(f", `{pattern}` {words(rule)}" for pattern, rule in init.get("parts", {}).items())
    return f"{init['kind']}({mean}{init['std']}{root}){parts}"


def stated() -> dict[str, str]:
    """Return what the files of conf/model say of initial values, by file, or file and part."""
    found = {}
    for name, file in FILES.items():
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        for part, spec in {"": data, **{f" {k}": v for k, v in data.items() if isinstance(v, dict)}}.items():
            if isinstance(spec.get("init"), dict):
                found[f"{name}{part}"] = words(spec["init"])
    return found


def test_the_table_says_what_every_yaml_says() -> None:
    told: dict[str, str] = {}
    for row in re.findall(r"^\| .+ \| .+ \| (`.+) \|$", TABLE, re.MULTILINE):
        names, part, rule = re.fullmatch(r"((?:`\w+`,? )+)(vision )?(\w+\(.*)", row).groups()  # type: ignore[union-attr]
        told |= {f"{name} {part or ''}".strip(): rule for name in re.findall(r"`(\w+)`", names)}
    assert told == stated()
