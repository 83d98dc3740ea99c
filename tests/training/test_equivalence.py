"""Every strategy trains as one process does, for every kind of model; docs/strategies.md says how closely.

`python -m pytest tests/training/test_equivalence.py --update-golden` measures the tables there and writes them again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from equivalence import MODELS, Cell, curve, largest_difference, together
from strategy_tables import put, table

from mlplatform.errors import SpecError
from mlplatform.registry import Spec
from mlplatform.training.strategies import Place

pytestmark = pytest.mark.distributed

CLOSE = 1e-5
SINGLE = {"kind": "single"}
TWO: dict[str, dict[str, Any]] = {
    "ddp": {"kind": "ddp"},
    "fsdp": {"kind": "fsdp"},
    "tp": {"kind": "tp"},
    "ep": {"kind": "ep"},
    "zero1": {"kind": "zero1"},
    "zero2": {"kind": "zero2"},
    "zero3": {"kind": "zero3", "keep": 100},
    "fsdp_cp": {"kind": "fsdp_cp", "context": 2},
}
FOUR: dict[str, dict[str, Any]] = {
    "hybrid": {"kind": "fsdp", "replicate": 2},
    "fsdp_tp": {"kind": "fsdp_tp", "tensor": 2},
}
PRECISIONS = {"fp32": 1e-5, "bf16-mixed": 0.01, "bf16-true": 0.03, "fp16-mixed": 0.01, "fp8": 0.0}
"""How far a loss may be from that of one process in the same precision."""
MORE: dict[str, dict[str, Any]] = {
    "one key head, norms of heads, biases, slopes": {"model": "variety"},
    "a masked head": {"model": "bert"},
    "pairs in pieces": {"model": "clip", "micro": 1},
    "averaged weights": {"trainer": {"ema": 0.9}},
    "recomputed layers": {"trainer": {"activation_checkpointing": "full", "clip_norm": None}},
    "one row at a time": {"micro": 1},
    "Muon": {"optimizer": {"kind": "muon", "lr": 3e-3}},
}
SHORT = 4


def trained(strategy: str) -> tuple[str, ...]:
    """Return the models a strategy is for."""
    return {"ep": ("afmoe",), "fsdp_cp": ("llama",)}.get(strategy, MODELS)


def refused(strategy: dict[str, Any], precision: Any) -> str | None:
    """Return why a strategy doesn't train in a precision on this machine, None where it does."""
    try:
        Spec.of(strategy, "strategy", "strategy").build().check(Place("cpu", 2), precision)
        from mlplatform.training.precision import check

        check(precision, "cpu")
    except SpecError as error:
        return str(error)
    return None


def precise(kind: dict[str, Any], model: str = "llama") -> list[Cell]:
    """Return short runs in each precision but fp32 that the strategy trains in."""
    chosen = [p for p in PRECISIONS if p != "fp32" and refused(kind, p) is None]
    return [Cell(model, kind, {"precision": p, "validate_every": None}, steps=SHORT) for p in chosen]


def more_cell(name: str, strategy: dict[str, Any]) -> Cell:
    return Cell(**{"model": "llama", "steps": 8, **MORE[name], "strategy": strategy})


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What one process says: by model; by (precision, model); by the name of what else is different."""
    cells: dict[Any, Cell] = {model: Cell(model, SINGLE) for model in MODELS}
    for model in ("llama", "afmoe"):
        cells |= {(cell.trainer["precision"], model): cell for cell in precise(SINGLE | {"kind": "ddp"}, model)}
    cells = {name: cell._replace(strategy=SINGLE) for name, cell in cells.items()}
    cells |= {name: more_cell(name, SINGLE) for name in MORE}
    said = together(tmp_path_factory.mktemp("alone"), 1, list(cells.values()))
    return dict(zip(cells, said, strict=True))


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> Any:
    """Collects what the tests measure, and writes it down at the end where that is asked for."""
    rows: dict[str, dict[str, str]] = {}
    yield rows
    if request.config.getoption("--update-golden"):
        write(rows)


@pytest.mark.parametrize("strategy", [*TWO, *FOUR])
def test_trains_as_one_process_does(strategy: str, tmp_path: Path, alone: dict[Any, Any], found: Any) -> None:
    kind, world = (TWO | FOUR)[strategy], 2 if strategy in TWO else 4
    first = trained(strategy)[0]
    # With four ranks a held-out micro-batch of eight pairs would leave one of them without any.
    micro = {"clip": 1} if world == 4 else {}
    cells = [*(Cell(model, kind, micro=micro.get(model, 2)) for model in trained(strategy)), *precise(kind, first)]
    said = together(tmp_path, world, cells)
    told = {}
    for cell, one in zip(cells, said, strict=True):
        precision = cell.trainer.get("precision")
        other = alone[precision, cell.model] if precision else alone[cell.model]
        # A held-out loss of pairs is within a micro-batch.
        names = ["train/loss", *([] if precision or cell.micro != 2 else ["validation/loss"])]
        gap = max(largest_difference(one, other, name) for name in names)
        assert gap < PRECISIONS[precision or "fp32"], f"{cell}: {gap}"
        told[precision or cell.model] = f"{gap:.0e}"
        assert curve(one)[-1] < curve(one)[0]  # it learns: equal curves of nothing would be equal too
    found[strategy] = told


@pytest.mark.parametrize("strategy", ["fsdp", "tp", "zero2", "zero3"])
def test_with_what_else_a_run_may_have(strategy: str, tmp_path: Path, alone: Any) -> None:
    left = {"Muon"} if strategy.startswith("zero") else set()
    names = [name for name in MORE if name not in left]
    said = together(tmp_path, 2, [more_cell(name, TWO[strategy]) for name in names])
    for name, one in zip(names, said, strict=True):
        # Muon rounds to bf16 in its iterations, where the last digit of a gradient may tip a number over.
        close = 1e-3 if name == "Muon" else CLOSE
        for metric in ("train/loss", "train/grad_norm", "validation/loss"):
            gap = largest_difference(one, alone[name], metric)
            assert gap < close * (30 if metric == "train/grad_norm" else 1), f"{name}: {metric} {gap}"


LOSSES, NUMBERS = "## How closely", "## Precisions"


def test_the_tables_are_not_stale() -> None:
    losses, numbers = table(LOSSES), table(NUMBERS)
    assert list(losses) == list(numbers) == [*TWO, *FOUR]
    for strategy, cells in losses.items():
        for model, cell in zip(MODELS, cells, strict=True):
            assert (cell == "") == (model not in trained(strategy)), (strategy, model)
            assert cell == "" or float(cell) < CLOSE, (strategy, model)
    for strategy, cells in numbers.items():
        for precision, cell in zip(PRECISIONS, cells, strict=True):
            kind = (TWO | FOUR)[strategy]
            able = precision in Spec.of(kind, "strategy", "strategy").build().precisions
            assert (cell == "no") == (not able), (strategy, precision)


def write(found: dict[str, dict[str, str]]) -> None:
    """Put what was measured into the tables; rows that were not measured stay."""
    losses, numbers = {}, {}
    for strategy, told in found.items():
        able = Spec.of((TWO | FOUR)[strategy], "strategy", "strategy").build().precisions
        losses[strategy] = [told.get(model, "") for model in MODELS]
        fp32 = max(told[model] for model in trained(strategy))
        cells = {p: "CUDA" if p == "fp8" else told.get(p, fp32) for p in able}
        numbers[strategy] = [cells.get(p, "no") for p in PRECISIONS]
    put(LOSSES, losses)
    put(NUMBERS, numbers)
