"""Means over seeds and their intervals, beside scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mlplatform.runs.report.seeds import groups, mean, student_cdf, student_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 29, 200])
def test_students_distribution_is_scipys(freedom: int) -> None:
    for t in (0.0, 0.3, 1.0, 2.5, 12.0):
        assert student_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-12)
    for share in (0.5, 0.9, 0.975, 0.9995):
        assert student_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-9, abs=1e-9)


def test_the_interval_is_scipys_and_one_value_has_none() -> None:
    values = np.random.default_rng(0).normal(2, 0.1, 5).tolist()
    found = mean(values)
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (found.value - (found.half or 0), found.value + (found.half or 0)) == pytest.approx((low, high))
    assert mean([3.0]) == (3.0, None, 1)


def test_runs_that_differ_in_their_seed_alone_are_one_group() -> None:
    base = {"optimizer.lr": 0.1, "seed": 0, "logger.kind": "wandb"}
    configs = [base, {**base, "seed": 1}, {**base, "optimizer.lr": 0.2}, {**base, "logger.kind": "mlflow"}, {"seed": 3}]
    assert groups(configs) == [0, 0, 1, 0, 2]
    assert groups([{"x": 1}, {"x": True}, {"x": "1"}]) == [0, 1, 2]
