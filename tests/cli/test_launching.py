"""`--multirun`: Hydra's grammar makes the grid, and what a grid may not be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from test_run_verbs import SMALL, TEXT

from mlplatform.cli.compose import compose
from mlplatform.cli.launching import grid
from mlplatform.cli.library import Library
from mlplatform.cli.main import main
from mlplatform.errors import SpecError


@pytest.mark.parametrize(
    "tokens",
    [
        ["optimizer.lr=1e-3,3e-3", "seed=0,1"],
        ["seed=range(1,4)", "model=gpt2", "trainer.max='5 steps','1 epochs'"],
        ["optimizer=choice(adamw,muon)", "freeze=[a,b],[c]"],
        ["seed=sort(3,1,2)", "~teacher", "prompt='a,b'"],
    ],
)
def test_the_grid_is_hydras(tokens: list[str]) -> None:
    [theirs] = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(tokens), None)
    ours, _ = grid(tokens)

    def meant(words: list[str]) -> list[tuple[str, str]]:
        """Return the keys and values that words set, in no order."""
        return sorted((o.key_or_group, repr(o.value())) for o in OverridesParser.create().parse_overrides(words))

    assert [meant(run) for run in ours] == [meant(run) for run in theirs]


def test_a_glob_takes_the_options_there_are_also_the_users(tmp_path: Path) -> None:
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "mine.yaml").write_text("# Mine\nkind: constant\n")
    _, varied = grid(["schedule=glob(*)"], [str(tmp_path)])
    assert varied == [[f"schedule={name}"] for name in Library([tmp_path]).options("schedule")]
    assert ["schedule=mine"] in varied
    _, some = grid(["schedule=glob(*,exclude=c*)"])
    assert some == [["schedule=linear"], ["schedule=wsd"]]


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        (["seed=1"], "nothing varies; give several values"),
        (["optimizer.lr=interval(0,1)"], "optimizer.lr is an interval: --multirun takes lists of values"),
        (["seed=1,2", "seed=3,4"], "seed is given several values twice"),
        (["schedule=glob(x*)"], "no option fits; there are constant, cosine, linear, wsd"),
        (["seed=range(200)", "prompt=range(200)"], "40,000 runs are over 10,000"),
        (["seed=range(1000000000)"], "over 10,000 values"),
        (["seed=1,2,"], r"seed=1,2,: can't be read"),
    ],
)
def test_what_is_no_grid_is_one_line(tokens: list[str], told: str) -> None:
    with pytest.raises(SpecError, match=told) as caught:
        grid(tokens)
    assert "\n" not in str(caught.value)


def test_without_multirun_several_values_are_refused_with_the_way_to_have_them() -> None:
    with pytest.raises(SpecError, match="--multirun makes a run for each"):
        compose("train", ["seed=0,1"])


def test_a_grid_with_a_mistake_in_one_run_starts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plays.txt").write_text(TEXT)
    assert main(["train", "--multirun", *SMALL, "optimizer.lr=1e-3,-1"]) == 2
    said = capsys.readouterr().err
    assert "optimizer.lr" in said
    assert "(run optimizer.lr=-1)" in said
    assert main(["train", "-m", *SMALL, "trainer.max=2 steps", "data.path=plays.txt,gone.txt"]) == 2
    assert "error: data.path=gone.txt: data.path: there is no file or folder gone.txt" in capsys.readouterr().err
    assert main(["train", "--multirun", *SMALL, "trainer.max=2 steps", "launcher.at_once=1,2"]) == 2
    assert "launcher: the runs of one --multirun have the same" in capsys.readouterr().err
    assert [path for path in Path("outputs").rglob("*") if path.is_file()] == []


def test_a_grid_runs_in_processes_and_a_failure_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two at once, one thread's share each; the rate of the second is so high that its gradient is no number."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plays.txt").write_text(TEXT)
    words = [*SMALL, "trainer.max=3 steps", "optimizer.lr=1e-3,1e38", "launcher.at_once=2"]
    assert main(["train", "--multirun", *words]) == 1
    said = capfd.readouterr()
    [home] = Path("outputs/default/multirun").iterdir()
    known = json.loads((home / "multirun.json").read_text())
    one, two = (Path(os.path.normpath(home / name)) for name in known["runs"])
    records = [json.loads((run / "run.json").read_text()) for run in (one, two)]
    assert [r["status"] for r in records] == ["finished", "failed"]
    assert records[0]["code"] == records[1]["code"]
    assert [r["varied"] for r in records] == [["optimizer.lr=0.001"], ["optimizer.lr=1e+38"]]
    assert "finished after 3 steps" in (one / "output.txt").read_text()
    assert records[0]["hardware"][0].endswith(f"torch uses {max(1, (os.cpu_count() or 1) // 2)}")
    rows = [line for line in said.out.splitlines() if "optimizer.lr=" in line]
    assert "finished  3" in rows[0]
    assert "failed" in rows[1]
    assert "error: " in (two / "output.txt").read_text()
    assert main(["status", str(home), "--json"]) == 0
    assert [row["status"] for row in json.loads(capfd.readouterr().out)] == ["finished", "failed"]
    assert main(["logs", str(one)]) == 0
    assert "finished after 3 steps" in capfd.readouterr().out
    assert main(["cancel", str(home)]) == 0
    assert "all of its runs have ended" in capfd.readouterr().out
