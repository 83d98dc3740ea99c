"""`_target_`: only classes of torch.optim, Lightning's loggers and callbacks, and only where one may stand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from mlplatform.errors import SpecError
from mlplatform.registry import Spec, validate
from mlplatform.registry.targets import resolve_target

STRANGE = [
    "os.system",
    "builtins.eval",
    "subprocess.Popen",
    "torch.load",
    "torch.optim",
    "torch.optim.",
    "torch.optim.os.system",
    "torch.optim..SGD",
    "torch.optim.SGD()",
    "torch.optim.__import__('os').System",
    "torch.optimizer.SGD",
    "torch.optim.sgd.os.System-1",
    "mlplatform.training.optimizers.Joined",
    "",
    7,
    None,
    ["torch.optim.SGD"],
]


@pytest.mark.parametrize("name", STRANGE, ids=str)
def test_strange_names_are_refused_before_anything_is_imported(name: Any) -> None:
    with pytest.raises(SpecError) as caught:
        validate({"_target_": name}, "optimizer", "optimizer")
    [(path, text)] = caught.value.problems
    assert path == "optimizer._target_"
    assert text == f"'{name}' is not allowed here; a optimizer may come from torch.optim.*"


@pytest.mark.parametrize("name", ["torch.optim.SGD", "torch.optim.adamw.AdamW"])
def test_optimizers_are_allowed(name: str) -> None:
    spec = Spec.of({"_target_": name, "lr": 0.5}, "optimizer", "optimizer")
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = spec.build(params=[weight], model=None)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert spec.kind == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torch.optim.Sgd", "'torch.optim.Sgd' does not exist"),
        ("torch.optim.nowhere.SGD", "'torch.optim.nowhere.SGD' does not exist"),
        ("torch.optim.os.PathLike", "does not exist"),
        ("torch.optim.adamw.Tensor", "is not a optimizer class"),
        ("torch.optim.optimizer.OrderedDict", "is not a optimizer class"),
        ("torch.optim.optimizer.Any", "is not a optimizer class"),
    ],
)
def test_names_that_lead_elsewhere_are_refused_at_the_door(name: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        Spec.of({"_target_": name}, "optimizer", "optimizer").build(params=[])


def test_what_is_not_listed_is_not_resolved_even_unchecked(tmp_path: Path) -> None:
    (tmp_path / "evil_target.py").write_text("raise RuntimeError('ran')\nclass Evil: ...\n")
    with pytest.raises(SpecError, match="is not allowed here"):
        resolve_target("evil_target.Evil", "optimizer", "optimizer")
    with pytest.raises(SpecError, match="is not allowed here"):
        resolve_target("torch.optim.SGD", "norm", "norm")
    assert "evil_target" not in sys.modules


@pytest.mark.parametrize(
    "where", ["trunk", "trunk.norm", "trunk.layer.mlp", "trunk.layer.attention.rope", "head", "init"]
)
def test_nowhere_in_a_model(where: str) -> None:
    data: dict[str, Any] = {"kind": "single_tower", "trunk": tiny.tower()}
    *way, last = where.split(".")
    node = data
    for name in way:
        node = node[name]
    node[last] = {"_target_": "torch.optim.SGD"}
    with pytest.raises(SpecError) as caught:
        validate(data, "model", "model")
    assert caught.value.problems == [
        (
            f"model.{where}._target_",
            "'torch.optim.SGD' is not allowed here; name a registered kind under 'kind' instead",
        )
    ]


def test_hydras_other_keys_are_refused() -> None:
    with pytest.raises(SpecError, match="'_partial_' is not allowed; a target takes plain arguments only"):
        validate({"_target_": "torch.optim.SGD", "_partial_": True}, "optimizer")


def test_arguments_that_do_not_fit_are_a_line() -> None:
    for wrong in ({"lrr": 1}, {"lr": -1.0}):
        spec = Spec.of({"_target_": "torch.optim.SGD", **wrong}, "optimizer", "optimizer")
        with pytest.raises(SpecError, match=r"optimizer: torch\.optim\.SGD: "):
            spec.build(params=[torch.nn.Parameter(torch.zeros(2))])


def test_loggers() -> None:
    validate({"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": "x"}, "logger")
    with pytest.raises(SpecError, match=r"may come from lightning\.pytorch\.loggers"):
        validate({"_target_": "lightning.pytorch.Trainer"}, "logger")
