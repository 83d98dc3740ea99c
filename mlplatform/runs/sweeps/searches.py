"""How a sweep chooses its next point, and when it gives one up: Optuna's samplers and pruners, by kind.

Optuna is imported when a search begins, not when a config is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from mlplatform.errors import SpecError
from mlplatform.registry import Natural, Positive, block
from mlplatform.runs.sweeps.space import Interval, Space, grid


class Search(Protocol):
    """What `sweep.search` names."""

    def points(self, space: Space, trials: int) -> int:
        """Return how many points there will be. Raises SpecError when this search can't search the space."""
        ...

    def sampler(self, space: Space, seed: int) -> Any:
        """Return Optuna's sampler. `seed` differs from worker to worker, or they would draw the same points."""
        ...


@block("search/grid")
class Grid:
    """Every combination of the values, once, the last axis changing fastest."""

    def __init__(self) -> None:
        pass

    def points(self, space: Space, trials: int) -> int:
        return len(grid(space))

    def sampler(self, space: Space, seed: int) -> Any:
        from optuna.samplers import BaseSampler

        points = grid(space)

        class InTurn(BaseSampler):
            """The next point that no trial had. A point that is tried again comes with its values."""

            def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
                return {key: axis.distribution() for key, axis in space.items()}

            def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
                others = (t for t in study.get_trials(deepcopy=False) if t.number != trial.number)
                had = {_key(t.params or t.system_attrs.get("fixed_params") or {}) for t in others}
                return next(point for point in points if _key(point) not in had)

            def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
                raise NotImplementedError  # every key is in the relative space

        return InTurn()


def _key(point: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a point as a member of a set."""
    return tuple(sorted(point.items()))


@block("search/random")
class Random:
    """Points at random, each by itself. Bergstra and Bengio 2012, "Random search for hyper-parameter optimization"."""

    def __init__(self) -> None:
        pass

    def points(self, space: Space, trials: int) -> int:
        return trials

    def sampler(self, space: Space, seed: int) -> Any:
        from optuna.samplers import RandomSampler

        return RandomSampler(seed=seed)


@block("search/tpe")
class TPE:
    """The tree-structured Parzen estimator, which also takes what is still running into account. arXiv:2304.11127

    Args:
        startup: points at random before it begins.
    """

    def __init__(self, *, startup: Natural = 10) -> None:
        self.startup = startup

    def points(self, space: Space, trials: int) -> int:
        return trials

    def sampler(self, space: Space, seed: int) -> Any:
        from optuna.samplers import TPESampler

        return TPESampler(n_startup_trials=self.startup, seed=seed, constant_liar=True)


@block("search/cmaes")
class CMAES:
    """Covariance matrix adaptation, for intervals alone. arXiv:1604.00772

    Args:
        startup: points at random before it begins.
    """

    def __init__(self, *, startup: Natural = 1) -> None:
        self.startup = startup

    def points(self, space: Space, trials: int) -> int:
        listed = [key for key, axis in space.items() if not isinstance(axis, Interval)]
        if listed:
            told = f"cmaes moves in intervals, and {listed[0]} lists its values; write {listed[0]}=interval(LOW,HIGH)"
            raise SpecError(problems=[("sweep.search", f"{told}, or choose sweep=tpe")])
        return trials

    def sampler(self, space: Space, seed: int) -> Any:
        from optuna.samplers import CmaEsSampler

        return CmaEsSampler(n_startup_trials=self.startup, seed=seed)


@block("pruner/median")
class Median:
    """Gives up a run whose metric is worse than the median of the earlier ones at the same step.

    Args:
        startup: runs that end before any is given up. warmup: steps of a run that are never looked at.
    """

    def __init__(self, *, startup: Natural = 5, warmup: Natural = 0) -> None:
        self.startup, self.warmup = startup, warmup

    def pruner(self) -> Any:
        """Return Optuna's pruner."""
        from optuna.pruners import MedianPruner

        return MedianPruner(n_startup_trials=self.startup, n_warmup_steps=self.warmup)


@block("pruner/halving")
class Halving:
    """Asynchronous successive halving: of those that come as far, the best part goes on. arXiv:1810.05934

    Args:
        least: steps before a run may be given up. factor: one of so many goes on, each time so much further.
    """

    def __init__(self, *, least: Positive = 1, factor: Positive = 3) -> None:
        if factor < 2:
            raise SpecError("factor=1 gives nothing up; take 2 or more")
        self.least, self.factor = least, factor

    def pruner(self) -> Any:
        """Return Optuna's pruner."""
        from optuna.pruners import SuccessiveHalvingPruner

        return SuccessiveHalvingPruner(min_resource=self.least, reduction_factor=self.factor)
