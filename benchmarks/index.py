"""How long `ls`, `compare` and `report` take over many run folders, as a user waits for them.

    python benchmarks/index.py [--runs 10000]

Folders are generated with records and configs of the size real ones have, and a hundred logged steps each. Each command
is a process of its own; the first `ls` has no index yet.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from mlplatform.cli.compose import compose
from mlplatform.runs import record


def generate(outputs: Path, runs: int, steps: int = 100) -> None:
    """Make the run folders of one sweep: three learning rates with five seeds each, and falling losses."""
    config, versions = compose("train", ()).check().config, record.versions()
    text = yaml.safe_dump(config, sort_keys=False)
    draws = random.Random(0)
    for number in range(runs):
        lr, seed = (1e-3, 3e-3, 1e-2)[number % 3], number // 3 % 5
        folder = outputs / "sweep" / f"2026-11-23_{number:06d}"
        folder.mkdir(parents=True)
        rows = [_row(step, 8 * step**-0.2 * (1 + draws.gauss(0, 0.01)) + lr, lr) for step in range(1, steps + 1)]
        loss = rows[-1]["train/loss"] + 0.1
        rows[-1]["validation/loss"] = loss
        known = {
            "schema": 1, "id": f"sweep-{folder.name}", "experiment": folder.parent.name, "status": "finished",
            "created": 1.79e9 + number, "seed": seed, "argv": ["mlplatform", "train", f"optimizer.lr={lr}"],
            "host": "elsewhere", "versions": versions, "sessions": [{"start": 0, "from_step": 0, "end": 9.0}],
            "steps": steps, "seconds": 9.0, "tokens": steps * 4096, "parameters": 2_000_000, "metrics": rows[-1],
            "best": {"step": steps, "validation/loss": loss}, "data": {"fingerprint": "ab" * 32},
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(known, indent=1))
        own = text.replace("\nseed: 0", f"\nseed: {seed}").replace(f"lr: {config['optimizer']['lr']}", f"lr: {lr}")
        (folder / "config.yaml").write_text(own)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _row(step: int, loss: float, lr: float) -> dict[str, Any]:
    return {"step": step, "time": 1.79e9 + step, "train/loss": loss, "train/grad_norm": loss / 4, "train/lr": lr} | {
        "train/tokens": 4096.0 * step,
        "perf/tokens_per_second": 9e3,
        "perf/data_wait": 0.01,
        "perf/memory_gb": 0.9,
    }


def seconds(words: list[str]) -> tuple[float, float]:
    """Return how long a command takes from its start to its end, and of that the processor's time."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "mlplatform.cli.main", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Generate, run each command three times, print the best of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as place:
        outputs = Path(place) / "outputs"
        generate(outputs, runs)
        time.sleep(2.1)  # files younger than two seconds are not kept in the index
        there = ["--outputs", str(outputs)]
        two = [f"sweep/2026-11-23_{n:06d}" for n in (0, 1)]
        print(f"{runs:,} runs; seconds from start to end, and of the processor")
        show("the first ls, which makes the index", seconds(["ls", *there]))
        commands = {
            "ls": ["ls"],
            "ls --sort loss --limit 5": ["ls", "--sort", "loss", "--limit", "5"],
            "ls --status failed": ["ls", "--status", "failed"],
            "compare of two": ["compare", *two],
            "report of two": ["report", *two, "--into", f"{place}/two.html"],
            "report of all": ["report", "sweep/", "--into", f"{place}/sweep.html"],
        }
        show("the first report of all, which reads every config", seconds([*commands["report of all"], *there]))
        for name, words in commands.items():
            show(name, min(seconds([*words, *there]) for _ in range(3)))


def show(name: str, found: tuple[float, float]) -> None:
    """Print one line."""
    print(f"{found[0]:6.2f} {found[1]:6.2f}  {name}", flush=True)


if __name__ == "__main__":
    main()
