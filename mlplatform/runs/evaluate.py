"""A run's metrics measured again, on any split or other data, with what the model says of each record."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mlplatform.data.module import DataModule
from mlplatform.errors import DataError, RunError, listing
from mlplatform.registry import Spec, use_plugins
from mlplatform.runs import record
from mlplatform.runs.config_file import check_complete, put, read_config
from mlplatform.runs.experiment import Experiment
from mlplatform.runs.folder import write_whole
from mlplatform.runs.media import keep
from mlplatform.runs.weights import load_run
from mlplatform.training import precision
from mlplatform.training.strategies import Place
from mlplatform.training.validation import measure

CHANGEABLE = ("data.", "batch.", "task.", "trainer.accelerator", "trainer.precision")
"""What another evaluation may have otherwise than the run; the rest is the model's."""
MEDIA = 24
"""Records whose pictures and sound are kept beside their predictions."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured: metrics by name, how many micro-batches' records they are of, and where it is kept."""

    metrics: dict[str, float]
    predictions: int
    folder: Path
    notes: tuple[str, ...]


def evaluate(
    folder: Path, split: str = "validation", changes: Mapping[str, Any] | None = None, limit: int | None = None
) -> Evaluation:
    """Measure a run's newest checkpoint on a split; keep the metrics and the predictions in its `evaluations`.

    Args:
        split: `train`, `validation` or `test`.
        changes: dotted keys of the config that are otherwise here; see `CHANGEABLE`.
        limit: measure this many micro-batches only.

    Raises:
        RunError: a change of what the run is, or the run lacks a checkpoint. DataError: the split has no rows.
    """
    changes = dict(changes or {})
    config = _config(folder, changes)
    use_plugins(config.get("plugins") or [])
    experiment: Experiment = Spec.of(config, "run").build()
    place = Place.find(experiment.trainer.build().accelerator, 1)
    data = experiment.prepare(place)
    rows = data.splits.get(split)
    if not rows:
        there = listing(name for name, held in data.splits.items() if held)
        raise DataError(f"{folder}: its data has no {split} split; it has {there}; set data.{split}=FILE or a share")
    task = experiment.build_task(load_run(folder, device=place.device))
    if task.reads_records:
        task.settle(experiment.tools, data.records(split))
    target = folder / "evaluations" / _name(split, changes, limit)
    target.mkdir(parents=True, exist_ok=True)
    plugin = precision.plugin(experiment.trainer["precision"], place.device)
    with plugin.val_step_context(), _Predictions(target / "predictions.jsonl") as said:
        metrics = _measure(task.to(place.device).eval(), data, split, limit, said)
    told = {name.replace("validation/", f"{split}/", 1): value for name, value in metrics.items()}
    about = {"split": split, "changes": changes, "limit": limit, "fingerprint": data.record()["fingerprint"]}
    write_whole(target / "metrics.json", json.dumps({**about, "metrics": told}, indent=2) + "\n")
    return Evaluation(told, said.count, target, tuple(_notes(folder, data, changes)))


def _config(folder: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's config with its own tokenizer, processor and classes, and the changes."""
    config, known = copy.deepcopy(read_config(folder)), record.read(folder)
    if refused := [path for path in changes if not path.startswith(CHANGEABLE)]:
        told = f"{refused[0]} makes another model or run of it; an evaluation may change {listing(CHANGEABLE)}"
        raise RunError(f"{folder}: {told}")
    for name, kind in (("tokenizer", "file"), ("processor", "folder")):
        if (folder / name).is_dir():
            config[name] = {"kind": kind, "path": str(folder / name)}
    classes = list((known.get("data") or {}).get("classes", {}).values())
    other = any(path.startswith("data.") for path in changes)
    if other and len(classes) == 1 and "classes" in Spec(config["data"], "data", "data").signature.fields:
        config["data"]["classes"] = classes[0]
    for path, value in changes.items():
        put(config, path, value)
    check_complete(folder, config)
    return config


def _measure(task: Any, data: DataModule, split: str, limit: int | None, said: _Predictions) -> dict[str, float]:
    def seen(batch: dict[str, torch.Tensor], out: Any) -> None:
        for number, prediction in zip(batch["numbers"].tolist(), task.predictions(batch, out), strict=False):
            said.write(number, task.held_out[number], prediction)

    batches = ({n: t.to(task.device) for n, t in batch.items()} for batch in islice(data.held_out(split), limit))
    metrics = measure(task, batches, seen=seen if task.reads_records else None)
    for number, prediction in task.whole_predictions() if task.reads_records else ():
        said.write(number, task.held_out[number], prediction)
    return metrics


class _Predictions:
    """predictions.jsonl: for each record its number, where it is, its fields that are text, and the prediction.

    Of the first records, pictures and sound that have no file of their own are written into `media/`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0

    def __enter__(self) -> _Predictions:
        self.file = self.path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if not self.count:
            self.path.unlink()

    def write(self, number: int, record: Any, prediction: Mapping[str, Any]) -> None:
        fields = {name: value for name, value in record.values.items() if _plain(value)}
        for name in record.values.keys() - fields.keys() if self.count < MEDIA else ():
            if file := keep(record.values[name], self.path.parent / "media" / f"{number}-{name}"):
                fields[name] = str(file.relative_to(self.path.parent))
        line = {"number": number, "place": record.place, **fields, "prediction": dict(prediction)}
        self.file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        self.count += 1


def _plain(value: Any) -> bool:
    """Whether a field is shown as it is: pixels and samples are not, the path of their file is."""
    return isinstance(value, str | int | float | list | dict | Path)


def _name(split: str, changes: Mapping[str, Any], limit: int | None) -> str:
    """Return the name of an evaluation's folder: that of the split, and a mark of what else is otherwise."""
    if not changes and limit is None:
        return split
    mark = hashlib.sha256(json.dumps([changes, limit], sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{split}-{mark}"


def _notes(folder: Path, data: DataModule, changes: Mapping[str, Any]) -> Iterator[str]:
    before = (record.read(folder).get("data") or {}).get("fingerprint")
    if before not in (None, data.record()["fingerprint"]) and not any(path.startswith("data.") for path in changes):
        yield "the data changed since the run was trained"
