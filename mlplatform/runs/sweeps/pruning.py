"""A run of a sweep reports its metric as it goes, and ends early when its study gives it up."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

VARIABLE = "MLPLATFORM_TRIAL"
"""Environment variable that names the study, the trial, its metric and its pruner, for rank 0 of a run."""
MARK = "pruned"


class Reporter:
    """A tracker that tells the study of each validation.

    To give a run up is to stop it as a signal does: all its ranks agree on the step.
    """

    def __init__(self, *, address: str, study: str, trial: int, metric: str, pruner: dict[str, Any]) -> None:
        self.address, self.study, self.number, self.metric, self.pruner = address, study, trial, metric, pruner
        self.given_up = False

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        import optuna

        from mlplatform.registry import Spec
        from mlplatform.runs.sweeps.study import opened

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        pruner = Spec.of(self.pruner, "pruner").build().pruner()
        study = optuna.load_study(study_name=self.study, storage=opened(self.address), pruner=pruner)
        self.trial, self.folder = optuna.Trial(study, self.number), folder

    def log(self, step: int, values: dict[str, float]) -> None:
        """Report the metric of a validation; ask whether to go on."""
        if self.metric not in values or self.given_up:
            return
        self.trial.report(values[self.metric], step)
        if self.trial.should_prune():
            self.given_up = True
            (self.folder / MARK).write_text(f"step {step}: {self.metric} {values[self.metric]:.6g}\n")
            os.kill(os.getpid(), signal.SIGTERM)

    def finish(self, status: str) -> None:
        """The sweep tells the study how the run ended."""


def reporters() -> list[Reporter]:
    """Return what reports this process's run to its study: none outside a sweep that gives runs up."""
    told = os.environ.get(VARIABLE)
    return [Reporter(**json.loads(told))] if told else []
