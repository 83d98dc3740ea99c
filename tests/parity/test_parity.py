"""Every model beside transformers, through files on disk: outputs, gradients, bytes, and a control that must fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cases import CASES
from measured import Measured
from oracle import Case, broken, config_of, difference, gradient_gap, randomise, randomised, tensors_of

import mlplatform as mp

pytestmark = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture
def reference(case: Case, tmp_path: Path) -> torch.nn.Module:
    model = randomised(case)
    model.save_pretrained(tmp_path / "theirs")
    return model


@pytest.fixture(scope="module")
def measured(request: pytest.FixtureRequest) -> Iterator[Measured]:
    found = Measured()
    yield found
    if request.config.getoption("--measured"):
        found.write(CASES)


def test_outputs(case: Case, reference: torch.nn.Module, tmp_path: Path, measured: Measured) -> None:
    ours = case.load(tmp_path / "theirs")
    for padding in case.paddings:
        gap = difference(case, ours, reference, padding)
        assert gap <= case.within, padding
        measured.outputs[case.name] = max(gap, measured.outputs.get(case.name, 0.0))


def test_gradients(case: Case, reference: torch.nn.Module, tmp_path: Path, measured: Measured) -> None:
    if not case.labels:
        pytest.skip("this head has no loss in the reference, or another one")
    gap = gradient_gap(case, case.load(tmp_path / "theirs"), reference)
    assert gap <= 1e-4
    measured.gradients[case.name] = gap


def test_round_trip(case: Case, reference: torch.nn.Module, tmp_path: Path) -> None:
    mp.save(case.load(tmp_path / "theirs"), tmp_path / "ours")
    theirs, ours = tensors_of(tmp_path / "theirs"), tensors_of(tmp_path / "ours")
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert tensor.dtype == ours[name].dtype, name
        assert torch.equal(tensor, ours[name]), name
    assert config_of(tmp_path / "ours") == config_of(tmp_path / "theirs")
    again, said = type(reference).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(said.values()), said
    for name, parameter in again.state_dict().items():
        assert torch.equal(parameter, reference.state_dict()[name]), name


def test_made_here(case: Case, reference: torch.nn.Module, tmp_path: Path) -> None:
    """A model that was never a file of theirs is one they load, and compute the same with."""
    ours = mp.build(case.load(tmp_path / "theirs").spec)
    mp.save(randomise(ours.eval(), seed=3), tmp_path / "ours")
    theirs, said = type(reference).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(said.values()), said
    if hasattr(reference.config, "pad_token_id"):
        theirs.config.pad_token_id = (
            reference.config.pad_token_id
        )  # a tokenizer's matter; their classifiers look for it
    assert difference(case, ours, theirs.eval(), case.paddings[-1]) <= 2 * case.within


def test_control(case: Case, reference: torch.nn.Module, tmp_path: Path) -> None:
    wrong = broken(case, tmp_path / "theirs")
    assert difference(case, wrong, reference, case.paddings[0]) > 10 * case.within
