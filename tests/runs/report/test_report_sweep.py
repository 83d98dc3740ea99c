"""What a sweep says of its settings, beside scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mlplatform.runs.report.sweep import best_so_far, importance, ranks, spread

RANDOM = np.random.default_rng(0)


def test_ranks_are_scipys() -> None:
    values = RANDOM.integers(0, 5, 40).astype(float)
    assert ranks(values).tolist() == stats.rankdata(values).tolist()


def test_a_number_matters_by_the_square_of_spearmans_correlation() -> None:
    lr, loss = RANDOM.choice([1e-3, 1e-2, 1e-1], 60), RANDOM.normal(size=60)
    loss += lr * 20
    expected = stats.spearmanr(lr, loss).statistic ** 2
    assert importance(lr.tolist(), loss) == pytest.approx(expected)
    assert importance(lr.tolist(), np.exp(loss)) == pytest.approx(expected)  # ranks: of no scale


def test_a_name_matters_by_epsilon_squared_which_is_near_zero_by_chance() -> None:
    names = RANDOM.choice(["adamw", "muon", "sgd"], 90).tolist()
    chance = RANDOM.normal(size=90)
    by = {"adamw": 0.0, "muon": 3.0, "sgd": 6.0}
    told = chance + np.array([by[name] for name in names])
    parts = [ranks(told)[[name == one for name in names]] for one in by]
    f = stats.f_oneway(*parts).statistic
    assert importance(names, told) == pytest.approx(((3 - 1) * (f - 1)) / ((3 - 1) * f + 90 - 3))
    assert importance(names, told) > 0.7
    assert importance(names, chance) < 0.05
    assert importance([str(n) for n in range(90)], chance) == 0  # a name for each run says nothing
    assert importance([1] * 90, chance) == 0
    assert importance(names, np.zeros(90)) == 0


def test_the_best_so_far() -> None:
    assert best_so_far([3, 5, 2, 4], higher=False) == [3, 3, 2, 2]
    assert best_so_far([3, 5, 2, 4], higher=True) == [3, 5, 5, 5]


def test_places_on_an_axis() -> None:
    places, ticks = spread([1e-4, 1e-2, 1e-3])
    assert places == pytest.approx([0, 1, 0.5])  # by the logarithm
    assert ticks == [(0.0, "0.0001"), (pytest.approx(0.5), "0.001"), (1.0, "0.01")]
    assert spread([1, 2, 3])[0] == [0, 0.5, 1]
    assert spread(["muon", None, True])[0] == [1, 0, 0.5]
    assert spread([7, 7])[0] == [0.5, 0.5]
