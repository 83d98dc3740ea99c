"""What a run may have beside its strategy: each combination trains as one process does, or is refused in one line.

`python -m pytest tests/training/test_combinations.py --update-golden` runs all of them and writes the table of
docs/strategies.md; without it a few run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from equivalence import TOWERS, Cell, curve, largest_difference, together
from strategy_tables import put, table
from test_equivalence import FOUR, SINGLE, TWO

from mlplatform.cli.compose import compose_model
from mlplatform.errors import SpecError
from mlplatform.models import build
from mlplatform.registry import Spec
from mlplatform.training.engine import preflight
from mlplatform.training.strategies import Place

pytestmark = pytest.mark.distributed

HEADING = "## Combinations"
STRATEGIES: dict[str, tuple[dict[str, Any], int]] = {
    **{name: (kind, 2) for name, kind in TWO.items()},
    "fsdp_tp": (FOUR["fsdp_tp"], 4),
}
LORA = {"kind": "lora", "rank": 4, "targets": ["*.attention.q", "*.attention.v", "*.mlp"]}
OPTIONS: dict[str, dict[str, Any]] = {
    "activation_checkpointing=full": {"trainer": {"activation_checkpointing": "full"}},
    "activation_checkpointing=[trunk.layers.0]": {"trainer": {"activation_checkpointing": ["trunk.layers.0"]}},
    "activation_checkpointing=selective": {"trainer": {"activation_checkpointing": "selective"}},
    "compile=true": {"trainer": {"compile": True}},
    "offload=true": {"strategy": {"offload": True}},
    "gather=bf16": {"strategy": {"gather": "bf16"}},
    "freeze=[trunk.input, *.mlp]": {"freeze": ("trunk.input", "*.mlp")},
    "adapter=lora": {"adapter": LORA},
    "adapter.dora=true": {"adapter": {**LORA, "dora": True}},
    "ema=0.9": {"trainer": {"ema": 0.9}},
    "clip_norm=0.1": {"trainer": {"clip_norm": 0.1}},
    "batch.micro=1": {"micro": 1},
    "precision=bf16-mixed": {"trainer": {"precision": "bf16-mixed"}},
}
LOOSE = {"gather=bf16": 1e-3, "precision=bf16-mixed": 1e-3}
"""How far a loss may be from that of one process, where numbers are rounded to bf16; else 1e-5."""
FEW = {
    "fsdp": ["activation_checkpointing=selective", "offload=true", "adapter=lora", "freeze=[trunk.input, *.mlp]"],
    "tp": ["activation_checkpointing=selective", "adapter.dora=true", "freeze=[trunk.input, *.mlp]"],
    "zero3": ["freeze=[trunk.input, *.mlp]", "clip_norm=0.1", "adapter.dora=true", "ema=0.9"],
}
STEPS = 4


def cell(option: str, strategy: str) -> Cell:
    given = dict(OPTIONS[option])
    kind = {**STRATEGIES[strategy][0], **given.pop("strategy", {})}
    return Cell("afmoe" if strategy == "ep" else "llama", kind, steps=STEPS, **given)


def refusal(option: str, strategy: str) -> str | None:
    """Return why a combination is refused before anything starts; None where it is not."""
    one, place = cell(option, strategy), Place("cpu", STRATEGIES[strategy][1])
    try:
        kind = Spec.of(one.strategy, "strategy", "strategy")
        trainer = Spec.of({"kind": "trainer", "max": "1 steps", **one.trainer}, "trainer", "trainer")
        preflight(trainer, kind, find=lambda *_: place)
        shell = build(compose_model(*TOWERS[one.model][::3]).check().config, device="meta")
        if one.adapter is not None:
            Spec.of(one.adapter, "adapter", "adapter").build().apply(shell)
        kind.build().check_model(shell, Spec.of(one.optimizer, "optimizer", "optimizer"), place)
    except SpecError as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def chosen(request: pytest.FixtureRequest) -> dict[str, list[str]]:
    """The options to run under each strategy."""
    if not request.config.getoption("--update-golden"):
        return FEW
    return {strategy: [o for o in OPTIONS if refusal(o, strategy) is None] for strategy in STRATEGIES}


@pytest.fixture(scope="module")
def alone(chosen: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What one process says, by model and option."""
    cells = {(cell(o, s).model, o): cell(o, s)._replace(strategy=SINGLE) for s, names in chosen.items() for o in names}
    said = together(tmp_path_factory.mktemp("alone"), 1, list(cells.values()))
    return dict(zip(cells, said, strict=True))


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> Any:
    """Collects what is measured by strategy and option, and writes it down at the end where that is asked for."""
    told: dict[str, dict[str, str]] = {}
    yield told
    if request.config.getoption("--update-golden"):
        put(HEADING, {o: [told.get(s, {}).get(o, "no") for s in STRATEGIES] for o in OPTIONS})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_trains_as_one_process_does(strategy: str, chosen: Any, alone: Any, found: Any, tmp_path: Path) -> None:
    names = chosen.get(strategy, [])
    if not names:
        pytest.skip("all run with --update-golden")
    said = together(tmp_path, STRATEGIES[strategy][1], [cell(option, strategy) for option in names])
    for option, one in zip(names, said, strict=True):
        other = alone[cell(option, strategy).model, option]
        gaps = {metric: largest_difference(one, other, metric) for metric in ("train/loss", "validation/loss")}
        assert max(gaps.values()) < LOOSE.get(option, 1e-5), f"{option}: {gaps}"
        assert curve(one)[-1] != curve(one)[0]
        found.setdefault(strategy, {})[option] = f"{max(gaps.values()):.0e}"


def test_the_table_is_not_stale() -> None:
    rows = table(HEADING)
    assert list(rows) == list(OPTIONS)
    for option, cells in rows.items():
        for strategy, told in zip(STRATEGIES, cells, strict=True):
            assert (told == "no") == (refusal(option, strategy) is not None), (option, strategy)
            assert told == "no" or float(told) < LOOSE.get(option, 1e-5), (option, strategy)


def test_what_is_refused_says_what_to_change() -> None:
    refused = {(o, s): refusal(o, s) for o in OPTIONS for s in STRATEGIES if refusal(o, s) is not None}
    assert all("\n" not in told for told in refused.values())
    assert "set it to full" in refused["activation_checkpointing=selective", "zero3"]
