"""Hydra's sweep grammar as axes."""

from __future__ import annotations

import pytest

from mlplatform.cli.axes import split
from mlplatform.cli.library import Library
from mlplatform.errors import SpecError
from mlplatform.runs.sweeps.space import Axis, Interval, Values

GRAMMAR = {
    "seed=1,2": ("seed", Values(("1", "2"))),
    "model=gpt2,llama": ("model", Values(("gpt2", "llama"))),
    "a=choice(x,y)": ("a", Values(("x", "y"))),
    "a=range(1,8,3)": ("a", Values(("1", "4", "7"))),
    "a=[1,2],[3]": ("a", Values(("[1,2]", "[3]"))),
    "a='x y','z'": ("a", Values(("'x y'", "'z'"))),
    "block/mlp@model.trunk.layer.mlp=mlp,moe": ("block/mlp@model.trunk.layer.mlp", Values(("mlp", "moe"))),
    "model=glob(llama_3*)": ("model", Values(("llama_3_2_1b", "llama_3_70b"))),
    "a=interval(0.1,1)": ("a", Interval(0.1, 1.0)),
    "a=tag(log,interval(1e-5,1e-2))": ("a", Interval(1e-5, 1e-2, log=True)),
    "a=int(interval(1,8))": ("a", Interval(1, 8, whole=True)),
}
WRONG = {
    "a=interval(2,1)": "its start is not below its end",
    "a=tag(log,interval(0,1))": "begins above 0",
    "model=glob(zzz*)": "no option fits; there are afmoe",
    "a=1,,2": "can't be read",
    "a=range(1000000000)": "over 10,000 values",
}


@pytest.mark.parametrize("token", GRAMMAR)
def test_grammar(token: str) -> None:
    key, axis = GRAMMAR[token]
    fixed, space = split([token, "b=1"], Library())
    assert fixed == ["b=1"]
    found: dict[str, Axis] = space
    assert found == {key: axis}


@pytest.mark.parametrize("token", WRONG)
def test_what_is_wrong_is_one_line(token: str) -> None:
    with pytest.raises(SpecError, match=WRONG[token]):
        split([token], Library())


def test_a_key_varies_once() -> None:
    with pytest.raises(SpecError, match="a is given several values twice"):
        split(["a=1,2", "a=3,4"], Library())
