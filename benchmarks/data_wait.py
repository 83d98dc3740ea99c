"""How much of a step each recipe spends waiting for its data: under 5% of it, or the exit code is 1.

    python benchmarks/data_wait.py [RECIPE ...] [--steps 40] [--keep FOLDER]

Every recipe is run as it stands, for a few steps only; what its header says is fetched is fetched before. Those that
begin with the run of another one find it shortened too. The figure is `perf/data_wait` of the second half of the steps,
when caches are as warm as they get.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from mlplatform.places import recipes

MOST = 0.05
CALL = "import sys; from mlplatform.cli.main import main; sys.exit(main())"


def mlplatform(*words: str) -> None:
    """Run a command; its last line is the error when it fails."""
    done = subprocess.run([sys.executable, "-c", CALL, *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"mlplatform {' '.join(words)}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


def in_order(names: list[str]) -> list[str]:
    """Return recipes with those before that they begin with."""
    found: dict[str, None] = {}
    for name in names:
        text = (recipes() / f"{name}.yaml").read_text()
        begins = re.findall(r"^init_from: (\w+)/last", text, re.MULTILINE)
        found.update(dict.fromkeys([*in_order(begins), name]))
    return list(found)


def waits(name: str, steps: int, outputs: Path) -> dict[str, float]:
    """Run a recipe and return its last metrics."""
    for one in re.findall(r"mlplatform data fetch (\w+)", (recipes() / f"{name}.yaml").read_text()):
        mlplatform("data", "fetch", one)
    short = [f"trainer.max={steps} steps", f"trainer.log_every={steps // 2} steps", "trainer.validate_every=null"]
    mlplatform("train", f"recipes={name}", *short, f"trainer.checkpoint_every={steps} steps", f"outputs={outputs}")
    [*_, run] = sorted((outputs / name).iterdir())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(row for row in reversed(rows) if "perf/data_wait" in row)


def main() -> int:
    """Measure the recipes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=sorted(file.stem for file in recipes().glob("*.yaml")))
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--keep", type=Path, help="where the runs go; a temporary folder without it")
    given = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        print("| recipe | waiting for data | tokens or rows a second |\n|---|--:|--:|")
        for name in in_order(given.recipes):
            found = waits(name, given.steps, given.keep or Path(folder))
            share = found["perf/data_wait"]
            print(f"| `{name}` | {share:.1%} | {found['perf/tokens_per_second']:,.0f} |", flush=True)
            worst = max(worst, share)
    print(f"\nthe most is {worst:.1%}: {'under' if worst < MOST else 'NOT under'} {MOST:.0%}")
    return int(worst >= MOST)


if __name__ == "__main__":
    sys.exit(main())
