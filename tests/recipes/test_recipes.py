"""Every recipe: its header says what it took and reached, and it trains for two steps, made small."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mlplatform.cli.compose import compose
from mlplatform.cli.main import main
from mlplatform.places import recipes
from mlplatform.runs import metrics, record

NAMES = sorted(path.stem for path in recipes().glob("*.yaml"))
HEADER = ("command", "machine", "minutes", "result", "baseline")
STEPS = [
    "trainer.max='2 steps'",
    "trainer.validate_every='2 steps'",
    "trainer.checkpoint_every='2 steps'",
    "trainer.accelerator=cpu",
    "batch.sequences=4",
    "batch.micro=4",
]


def miniatures() -> dict[str, Callable[[Path], list[str]]]:
    """Return every module's table, as one."""
    modules = sorted(Path(__file__).parent.glob("miniatures*.py"))
    return {name: made for file in modules for name, made in importlib.import_module(file.stem).MINIATURES.items()}


def header(name: str) -> dict[str, str]:
    """Return the header's lines by their first word."""
    found: dict[str, str] = {}
    last = ""
    for line in (recipes() / f"{name}.yaml").read_text().splitlines():
        if entry := re.match(r"#   (\w+)  +(\S.*)", line):
            last, found[entry[1]] = entry[1], entry[2]
        elif last and (more := re.match(r"#    +(\S.*)", line)):
            found[last] += f" {more[1]}"
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_what_it_took_and_reached(name: str) -> None:
    told = header(name)
    assert tuple(told) == HEADER
    assert f"mlplatform train recipes={name}" in told["command"]
    for other in re.findall(r"recipes=(\w+)", " ".join(told.values())):
        assert other in NAMES
    minutes = re.findall(r"\d+\.\d+", told["minutes"])
    assert minutes
    assert all(float(number) <= 10 for number in minutes)
    assert re.search(r"\d\.\d", told["result"])
    assert re.search(r"\d\.\d", told["baseline"])
    assert re.search(r"python scripts/\w+\.py", told["baseline"])
    for script in re.findall(r"scripts/\w+\.py", told["baseline"]):
        assert (recipes().parent / script).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_named_after_its_file(name: str) -> None:
    assert compose("train", [f"recipes={name}"]).config["experiment"] == name


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_made_small(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = miniatures()[name](tmp_path)
    outputs = tmp_path / "made"
    code = main(["train", f"recipes={name}", *STEPS, *small, f"outputs={outputs}"])
    assert code == 0, capsys.readouterr().err
    [folder] = (outputs / name).iterdir()
    assert record.read(folder)["status"] == "finished"
    logged = metrics.last_values(metrics.read(folder))
    assert logged["validation/loss"] > 0
    assert (folder / "checkpoints" / "step=00000002").is_dir()
