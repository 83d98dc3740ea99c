"""A causal model scored on tasks of EleutherAI's lm-evaluation-harness: its own, or YAML files of yours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from mlplatform.errors import DataError, RunError, SpecError, did_you_mean, listing
from mlplatform.runs.folder import write_whole

RESAMPLED = 1000
"""How often figures whose error has no formula are drawn again to estimate it."""


def harness(
    model: nn.Module, tokenizer: Any, tasks: str, *, limit: int | None = None, shots: int | None = None, batch: int = 8
) -> dict[str, Any]:
    """Return what the harness finds: `metrics` by task, `shortened` requests, and its own `report` with every sample.

    Args:
        tasks: names of the harness's tasks between commas; or folders of task YAMLs, all of which are taken unless
            names of some stand beside them.
        limit: requests of each task. shots: examples before each question; None for as many as the task says.
        batch: texts of one forward pass.

    Raises:
        SpecError: lm_eval is missing, or the model doesn't go on from a text.
        DataError: there is no such task, its data can't be had, or they don't fit in the model's context.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise SpecError(
            "this needs lm-evaluation-harness; install it with: pip install 'mlplatform[harness]'"
        ) from None
    head, trunk = getattr(model, "head", None), getattr(model, "trunk", None)
    if getattr(head, "task", "") != "causal_lm" or trunk is None:
        raise SpecError("the harness asks what follows a text: it takes a causal model with a head for the next token")
    from mlplatform.runs.harness_model import Judged

    folders, names = _parted(tasks)
    manager = TaskManager(include_path=cast(Any, folders or None), include_defaults=not folders)
    chosen = _chosen(manager, folders, names)
    judged, evaluate = Judged(model, tokenizer, batch), cast(Any, lm_eval.simple_evaluate)
    try:
        report = evaluate(
            judged,
            tasks=chosen,
            task_manager=manager,
            limit=limit,
            num_fewshot=shots,
            bootstrap_iters=RESAMPLED,
        )
    except DataError:
        raise
    except (OSError, ValueError, KeyError, AttributeError) as error:  # of the task's data or its template
        told = " ".join(str(error).split())[:300]
        raise DataError(f"--tasks {tasks}: {type(error).__name__}: {told}") from None
    return {"metrics": _metrics(report["results"]), "shortened": judged.shortened, "report": report}


def _parted(tasks: str) -> tuple[list[str], list[str]]:
    """Return the folders and the names among what stands between commas."""
    parts = [part.strip() for part in tasks.split(",") if part.strip()]
    folders = [part for part in parts if Path(part).expanduser().is_dir()]
    if missing := [part for part in parts if "/" in part and part not in folders]:
        raise DataError(f"--tasks {missing[0]}: there is no such folder (looked from {Path.cwd()})")
    if not parts:
        raise DataError("--tasks names nothing; give a folder of task YAMLs, or names of tasks")
    return [str(Path(folder).expanduser()) for folder in folders], [part for part in parts if part not in folders]


def _chosen(manager: Any, folders: Sequence[str], names: Sequence[str]) -> list[str]:
    known = sorted(manager.all_tasks)
    if not names:
        if not known:
            raise DataError(f"--tasks: {listing(folders)} has no YAML file with a 'task' of the harness")
        return known
    for name in names:
        if name not in known:
            raise DataError(f"--tasks {name}: the harness has no such task{did_you_mean(name, known)}")
    return list(names)


def _metrics(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the figures as `task/metric`; the harness writes `acc,none`, with the name of a filter of answers."""
    found: dict[str, float] = {}
    for task, values in results.items():
        for name, value in values.items():
            metric, _, kept = name.partition(",")
            if isinstance(value, int | float) and kept:
                found[f"{task}/{metric}" + ("" if kept == "none" else f",{kept}")] = float(value)
    return found


def keep(run: Path, found: Mapping[str, Any], tasks: str, limit: int | None, shots: int | None) -> Path:
    """Write the figures and every answer beside a run's other evaluations; return the folder."""
    if not (run / "run.json").is_file():
        raise RunError(f"{run}: is no run folder")
    names = "+".join(sorted(found["report"]["results"]))[:80]
    marks = "".join(f"-{name}{value}" for name, value in (("limit", limit), ("shots", shots)) if value is not None)
    folder = run / "evaluations" / f"harness-{names}{marks}"
    folder.mkdir(parents=True, exist_ok=True)
    samples = found["report"].get("samples") or {}
    lines = [{"task": task, **answer} for task, answers in samples.items() for answer in answers]
    with (folder / "predictions.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
    about = {"tasks": tasks, "limit": limit, "shots": shots, "shortened": found["shortened"]}
    about["versions"] = found["report"].get("versions", {})
    write_whole(folder / "metrics.json", json.dumps({**about, "metrics": found["metrics"]}, indent=2) + "\n")
    return folder
