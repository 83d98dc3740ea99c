"""Choosing a token: what each option leaves to choose from, and how often it is chosen."""

from __future__ import annotations

import pytest
import torch

from mlplatform.errors import SpecError
from mlplatform.generation.sampling import check_sampling, sample

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]])


def drawn(count: int = 4000, **options: float) -> torch.Tensor:
    """Return how often each of the five tokens is drawn, as shares."""
    generator = torch.Generator().manual_seed(3)
    tokens = sample(LOGITS.expand(count, -1), generator, **options)  # type: ignore[arg-type]
    return tokens.bincount(minlength=5) / count


def test_greedy_takes_the_likeliest_of_each_row() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert sample(logits, temperature=0).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_the_softmax_says(temperature: float) -> None:
    expected = (LOGITS[0] / temperature).softmax(-1)
    assert (drawn(temperature=temperature) - expected).abs().max() < 0.03


@pytest.mark.parametrize("k", [1, 2, 4])
def test_top_k_leaves_the_k_likeliest(k: int) -> None:
    shares = drawn(top_k=k)
    assert (shares[:k] > 0).all()
    assert (shares[k:] == 0).all()
    assert (shares[:k] - LOGITS[0, :k].softmax(-1)).abs().max() < 0.03


def test_top_k_larger_than_the_vocabulary_leaves_all() -> None:
    assert (drawn(top_k=50) > 0).all()


@pytest.mark.parametrize(("p", "left"), [(0.5, 1), (0.65, 2), (0.9, 3), (1.0, 5)])
def test_top_p_leaves_the_fewest_that_reach_it(p: float, left: int) -> None:
    """Shares are 0.636, 0.234, 0.086, 0.032, 0.012: they add up to 0.636, 0.870, 0.957, 0.988, 1."""
    assert (drawn(top_p=p) > 0).tolist() == [token < left for token in range(5)]


def test_the_order_of_the_vocabulary_does_not_matter_to_top_p() -> None:
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = LOGITS[:, order].expand(2000, -1)
    seen = set(sample(shuffled, torch.Generator().manual_seed(0), top_p=0.65).tolist())
    assert seen == {1, 4}  # where tokens 0 and 1 stand now


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((-1.0, None, None), "temperature=-1.0"),
        ((float("nan"), None, None), "temperature=nan"),
        ((1.0, 0, None), "top_k=0"),
        ((1.0, None, 0.0), "top_p=0.0"),
        ((1.0, None, 1.5), "top_p=1.5"),
    ],
)
def test_options_that_leave_nothing_are_refused(options: tuple[float, int, float], named: str) -> None:
    with pytest.raises(SpecError, match=named):
        check_sampling(*options)
