"""The `sweep` section of a config."""

from __future__ import annotations

import importlib.util
from typing import Annotated, Literal

from mlplatform.errors import SpecError
from mlplatform.registry import Positive, Spec, Text, block
from mlplatform.runs.sweeps.searches import Search

JOURNAL = "journal"
DEFAULT_METRICS: dict[str, Literal["minimize", "maximize"]] = {"validation/loss": "minimize"}


@block("sweep/sweep")
class Sweep:
    """What `mlplatform sweep` tries, how often, and by which metric it judges. Training alone does not look at it.

    Args:
        search: chooses the points.
        space: override key -> values, as Hydra writes them: `choice(a,b)`, `range(1,9,2)`, `interval(0.1,0.9)`,
            `tag(log,interval(1e-4,1e-2))`, `int(interval(1,8))`. What the command line gives comes on top.
        trials: points that are tried; a grid tries each of its own.
        seeds: runs of each point; its value is their mean.
        metrics: what is judged, by the best a run's validations reach -> minimize or maximize; null is the validation
            loss.
        pruner: gives up points early by the metric of their first seed; null lets each end.
        at_once: points tried at the same time: on equal parts of this machine's cores, or with launcher=slurm by so
            many jobs.
        storage: where the study is: null is SQLite in the sweep's folder, or for jobs the journal; `journal` a file
            there that machines can share; anything else the URL of a database.
    """

    def __init__(
        self,
        *,
        search: Annotated[Spec, "search"],
        space: dict[str, Text] = {},  # noqa: B006  (read as data, never changed)
        trials: Positive = 20,
        seeds: Positive = 1,
        metrics: dict[str, Literal["minimize", "maximize"]] | None = None,
        pruner: Annotated[Spec, "pruner"] | None = None,
        at_once: Positive = 1,
        storage: Text | None = None,
    ) -> None:
        if importlib.util.find_spec("optuna") is None:
            raise SpecError('a sweep needs optuna; install it with: pip install "mlplatform[sweep]"')
        self.search: Search = search.build()
        self.space, self.trials, self.seeds, self.at_once = space, trials, seeds, at_once
        self.metrics = metrics or DEFAULT_METRICS
        self.pruner, self.storage = pruner.build() if pruner is not None else None, storage
        if self.pruner is not None and len(self.metrics) > 1:
            raise SpecError("pruner: points are given up by one metric, and sweep.metrics has several; leave one")
