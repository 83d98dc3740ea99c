"""The metrics tasks share, each a dict of torchmetrics by name. They add up over batches and ranks."""

from __future__ import annotations

import importlib.util

from torchmetrics import Metric

from mlplatform.errors import SpecError


def need_package(module: str, what: str, key: str) -> None:
    """Raise SpecError when the package a metric is computed by is not installed.

    Args:
        module: of the package. what: the metric. key: what in the config asks for it.
    """
    if importlib.util.find_spec(module) is None:
        told = f"{what} needs {module.replace('_', '-')}; install it with: pip install 'mlplatform[metrics]'"
        raise SpecError(problems=[(key, told)])


def of_classes(count: int) -> dict[str, Metric]:
    """Return the metrics of one class of `count` for each row: logits (rows, count), labels (rows,)."""
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassMatthewsCorrCoef

    return {
        "accuracy": MulticlassAccuracy(count, average="micro", ignore_index=-100),
        "f1": MulticlassF1Score(count, average="macro", ignore_index=-100),
        "matthews": MulticlassMatthewsCorrCoef(count, ignore_index=-100),
    }


def of_sets(count: int) -> dict[str, Metric]:
    """Return the metrics of any of `count` classes for each row: logits and labels of 0 and 1 (rows, count)."""
    from torchmetrics.classification import MultilabelAccuracy, MultilabelF1Score

    return {
        "accuracy": MultilabelAccuracy(count, average="micro"),
        "f1": MultilabelF1Score(count, average="macro"),
        "f1_micro": MultilabelF1Score(count, average="micro"),
    }


def of_numbers(count: int = 1) -> dict[str, Metric]:
    """Return the metrics of a number for each row: predictions and labels (rows,)."""
    from torchmetrics.regression import MeanSquaredError, PearsonCorrCoef, SpearmanCorrCoef

    return {"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef(), "mse": MeanSquaredError()}
