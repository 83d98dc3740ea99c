"""`verify-resume`: proof that a run killed and resumed is the run undisturbed, bit for bit.

Three runs of one config: one undisturbed, one killed (SIGKILL) after a step, one killed inside the writing of a
checkpoint; the killed ones go on from what is on their disk. Compared are the inputs of every step, every loss, and
every byte of the last checkpoint's tensors.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mlplatform.errors import RunError
from mlplatform.runs import metrics, record
from mlplatform.runs.config_file import read_config
from mlplatform.runs.launch import prepare, run_ranks
from mlplatform.runs.worker import Watch, run
from mlplatform.training.checkpoints import newest_whole, step_of

BATCHES = "batches.jsonl"
SAID = "output.txt"


def verify_resume(
    config: dict[str, Any],
    *,
    argv: list[str],
    from_environment: Iterable[str] = (),
    steps: int = 12,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the proof and return what was found; it is kept in the undisturbed run's record as `verify_resume`.

    Args:
        config: a composed run; its length and intervals are shortened to `steps`, everything else stays.
        argv, from_environment: as for `launch.prepare`.

    Raises:
        RunError: a run ended otherwise than it should.
    """
    short = shortened(config, steps)

    def begun(kill: str) -> Path:
        folder, _ = prepare(short, overrides=[], argv=argv, from_environment=from_environment)
        _work(folder, kill)
        return folder

    whole = begun("")
    say(f"undisturbed: {whole}, {steps} steps")
    found: dict[str, Any] = {"steps": steps, "undisturbed": str(whole), "equal": True}
    for name, kill in (("killed after a step", f"step:{steps // 2 + 2}"), ("killed inside a save", "save:2")):
        folder = begun(kill)
        last = newest_whole(folder / "checkpoints")[0]
        if last is None:
            raise RunError(f"{folder}: no checkpoint was whole when the run was {name}, so there is nothing to resume")
        at = step_of(last)
        _work(folder, "")
        differences = compare(whole, folder)
        found[name] = {"run": str(folder), "resumed_at": at, "differences": differences}
        found["equal"] &= not differences
        verdict = "equal, bit for bit" if not differences else f"DIFFERENT: {differences[0]}"
        say(f"{name}: resumed at step {at}; batches, losses, weights and optimizer are {verdict}")
    record.update(whole, verify_resume=found)
    return found


def shortened(config: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return the config of a run of that many steps which logs each, saves every third and validates at its end."""
    short = copy.deepcopy(config)
    short["experiment"] = f"{config.get('experiment', 'default')}-verify"
    short["trainer"] |= {
        "max": f"{steps} steps",
        "log_every": "1 steps",
        "validate_every": f"{steps} steps",
        "checkpoint_every": "3 steps",
        "keep": 2,
    }
    short["logger"] = None
    return short


def compare(one: Path, two: Path) -> list[str]:
    """Return every difference of two finished runs, in words; none when they are equal bit for bit."""
    differences = []
    for what, read in (("inputs", batches_of), ("loss", losses_of)):
        first, second = read(one), read(two)
        for step in sorted({*first, *second}):
            if first.get(step) != second.get(step):
                differences.append(f"{what} of step {step}: {first.get(step)} and {second.get(step)}")
    ends = [newest_whole(folder / "checkpoints")[0] for folder in (one, two)]
    digests = [{path.name: _digest(path) for path in end.glob("*.safetensors")} if end else {} for end in ends]
    for name in sorted({*digests[0], *digests[1]}):
        first, second = (found.get(name) for found in digests)
        if first != second:
            differences.append(f"{name}: sha256 {first} and {second}")
    return differences


def batches_of(folder: Path) -> dict[int, str]:
    """Return step -> hash of its inputs. Steps done again after a resume count as they were done last."""
    lines = (folder / BATCHES).read_text(encoding="utf-8").splitlines()
    return {row["step"]: row["inputs"] for row in map(json.loads, lines)}


def losses_of(folder: Path) -> dict[int, list[float]]:
    """Return step -> its losses and gradient norm, as JSON has them: every bit of a float."""
    names = ("train/loss", "train/grad_norm", "train/lr", "validation/loss")
    found: dict[int, list[float]] = {}
    for row in metrics.read(folder):
        found.setdefault(row["step"], []).extend(row[name] for name in names if name in row)
    return found


def _work(folder: Path, kill: str) -> None:
    """Run a folder in processes of their own; rank 0 kills itself as told."""
    module = ["mlplatform.runs.verify_resume", str(folder), kill]
    devices = read_config(folder)["trainer"].get("devices", 1)
    with (folder / SAID).open("ab") as said:
        if devices > 1:
            code = run_ranks(folder, devices, module, said)
            died = kill and code != 0
        else:
            code = subprocess.run([sys.executable, "-m", *module], stdout=said, stderr=said).returncode
            died = kill and code == -signal.SIGKILL
    if not died and (kill or code):
        last = (folder / SAID).read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise RunError(f"{folder}: ended with exit code {code}: {' '.join(last)}")


class Killer(Watch):
    """Writes a hash of every step's inputs down, and kills the process after a step, or inside the n-th save.

    Args:
        kill: `step:7`, `save:2` or nothing.
    """

    def __init__(self, folder: Path, kill: str) -> None:
        self.path, self.checkpoints = folder / BATCHES, folder / "checkpoints"
        last = newest_whole(self.checkpoints)[0]
        self.begun = step_of(last) if last else 0
        self.at, _, number = kill.partition(":")
        self.number, self.saves = int(number or 0), 0

    def batches(self, data: Any) -> Any:
        return _Data(data, self.begun, self.path) if int(os.environ.get("RANK", 0)) == 0 else data

    def logged(self, step: int) -> None:
        if self.at == "step" and step >= self.number:
            self._wait_for_a_checkpoint()
            os.kill(os.getpid(), signal.SIGKILL)

    def _wait_for_a_checkpoint(self, seconds: float = 120) -> None:
        """Saving goes on beside training: on a slow disk there would be nothing to go on from, and nothing to prove."""
        end = time.monotonic() + seconds
        while newest_whole(self.checkpoints)[0] is None and time.monotonic() < end:
            time.sleep(0.02)

    def saving(self, checkpoint: Path) -> None:
        self.saves += 1
        if self.at == "save" and self.saves == self.number:
            next(checkpoint.glob("model*.safetensors")).write_bytes(b"cut short")
            os.kill(os.getpid(), signal.SIGKILL)


class _Data:
    """A run's data whose train loader is watched."""

    def __init__(self, data: Any, begun: int, path: Path) -> None:
        self.data, self.begun, self.path = data, begun, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def train_dataloader(self) -> Any:
        return _Loader(self.data.train_dataloader(), self.begun, self.path)


class _Loader:
    """A train loader that writes down what it gives in each step after the one a run goes on from."""

    def __init__(self, loader: Any, begun: int, path: Path) -> None:
        self.loader, self.begun, self.path = loader, begun, path

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for step, item in enumerate(self.loader, self.begun + 1):
            digest = hashlib.sha256()
            for batch in item:
                for name in sorted(batch):
                    digest.update(name.encode() + batch[name].numpy().tobytes())
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "inputs": digest.hexdigest()}) + "\n")
            yield item

    def state_dict(self) -> dict[str, int]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.loader.load_state_dict(state)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: list[str]) -> None:
    """`python -m mlplatform.runs.verify_resume FOLDER KILL`: what each of the runs is, in its processes."""
    folder = Path(argv[0])
    run(folder, watch=Killer(folder, argv[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
