"""Run folders made by hand, as many and as odd as a test needs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

SCRIPT = "</script><script>document.title='stolen'</script><img src=x onerror=\"document.title='stolen'\">"
CONFIG = {"kind": "run", "model": {"kind": "single_tower", "trunk": {"dim": 32}}, "optimizer": {"lr": 0.01}, "seed": 0}


def made(
    outputs: Path,
    name: str,
    *,
    experiment: str = "plays",
    lr: float = 0.01,
    seed: int = 0,
    steps: int = 60,
    **known: Any,
) -> Path:
    """Make a finished run whose losses fall, deterministically, to what its rate and seed decide."""
    folder = outputs / experiment / name
    folder.mkdir(parents=True)
    rows = []
    for step in range(1, steps + 1):
        loss = 2 + 5 * math.exp(-step * lr * 100 / steps) + 0.05 * math.sin(step * (seed + 1))
        row = {"step": step, "time": 1.79e9 + 2 * step, "train/loss": loss, "train/lr": lr * (1 - step / steps)}
        row |= {"train/grad_norm": loss / 3, "train/tokens": 512.0 * step, "perf/tokens_per_second": 9e3 + step}
        row |= {"perf/data_wait": 0.01, "perf/memory_gb": 0.9}
        if step % max(1, steps // 6) == 0:
            row["validation/loss"] = loss + 0.1
        rows.append(row)
    best = {"step": steps, "validation/loss": rows[-1].get("validation/loss")}
    record = {
        "status": "finished", "host": "elsewhere", "created": 1.79e9, "steps": steps, "seconds": 120.0, "seed": seed,
        "versions": {"torch": "2.14", "python": "3.11"}, "git": {"commit": "c0ffee" * 6, "dirty": True}, "best": best,
        "argv": ["mlplatform", "train", f"optimizer.lr={lr}"], "metrics": {**rows[-1]}, "parameters": 2_000_000,
    }  # fmt: skip
    config = {**CONFIG, "optimizer": {"lr": lr}, "seed": seed, **known.pop("config", {})}
    (folder / "run.json").write_text(json.dumps(record | known))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def sweep(outputs: Path, **options: Any) -> list[Path]:
    """Make nine runs: three rates, three seeds."""
    pairs = [(lr, seed) for lr in (0.003, 0.01, 0.03) for seed in (0, 1, 2)]
    return [made(outputs, f"2026-11-23_{n:06d}", lr=lr, seed=seed, **options) for n, (lr, seed) in enumerate(pairs)]


def predictions(folder: Path, lines: list[dict[str, Any]], split: str = "validation") -> Path:
    """Write an evaluation into a run folder and return its folder."""
    into = folder / "evaluations" / split
    into.mkdir(parents=True)
    (into / "metrics.json").write_text(json.dumps({"split": split, "changes": {}, "metrics": {f"{split}/loss": 1.5}}))
    (into / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return into
