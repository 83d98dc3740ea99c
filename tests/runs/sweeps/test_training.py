"""Sweeps of small real runs: seeds, what is given up, what is missing, and the command line."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jobs
import pytest
from jobs import LOSS, study
from tiny_runs import SMALL, scenes

from mlplatform.cli.main import main
from mlplatform.errors import RunError
from mlplatform.runs import metrics, record
from mlplatform.runs.sweeps.space import Values
from mlplatform.runs.sweeps.study import Study
from mlplatform.runs.sweeps.sweeping import work
from mlplatform.runs.sweeps.trial import Training
from mlplatform.runs.sweeps.trials import read


def training(
    folder: Path, of: Study, seeds: int = 1, metric: str = LOSS, pruner: dict[str, object] | None = None
) -> Training:
    reports = {"address": of.address, "study": of.name, "pruner": pruner} if pruner else None
    return Training(partial(jobs.small, str(folder)), {metric: "minimize"}, 5, seeds, "sweep", ("mlplatform",), reports)


def quiet(*_: object) -> None:
    pass


def test_each_point_is_run_with_each_seed_and_judged_by_their_mean(tmp_path: Path) -> None:
    of = study(tmp_path / "sweep", {"optimizer.lr": Values(("1e-3", "1e-2"))}, seeds=2)
    work(of, training(tmp_path, of, seeds=2), 1, quiet)
    rows = read(tmp_path / "sweep")
    assert [row["status"] for row in rows] == ["finished", "finished"]
    for row in rows:
        known = [record.read(Path(run)) for run in row["runs"]]
        assert [run["seed"] for run in known] == [5, 6]
        assert [run["sweep"]["values"] for run in known] == [row["values"]] * 2
        losses = [min(r[LOSS] for r in metrics.read(Path(run)) if LOSS in r) for run in row["runs"]]
        assert row["seeds"][LOSS] == losses
        assert row["metrics"][LOSS] == pytest.approx(sum(losses) / 2)
    assert of.study.best_value == min(row["metrics"][LOSS] for row in rows)


def test_a_run_that_is_behind_is_given_up(tmp_path: Path) -> None:
    pruner = {"kind": "median", "startup": 1}
    of = study(tmp_path / "sweep", {"optimizer.lr": Values(("1e-2", "1e-6"))}, pruner=pruner)
    work(of, training(tmp_path, of, pruner=pruner), 1, quiet)
    good, bad = read(tmp_path / "sweep")
    assert (good["status"], bad["status"]) == ("finished", "pruned")
    known = record.read(Path(bad["runs"][0]))
    assert (known["status"], known["steps"]) == ("pruned", 5)  # it validated after step 4, and stops as signals do
    assert [trial.state.name for trial in of.study.trials] == ["COMPLETE", "PRUNED"]


def test_a_metric_that_never_appears_ends_the_sweep_at_once(tmp_path: Path) -> None:
    metric = "validation/accuracy"
    of = study(tmp_path / "sweep", {"seed": Values(("1", "2", "3"))}, metrics={metric: "maximize"})
    with pytest.raises(RunError, match=r"sweep\.metrics: validation/accuracy never appeared.*validation/loss"):
        work(of, training(tmp_path, of, metric=metric), 1, quiet)
    assert len(read(tmp_path / "sweep")) == 1


def test_from_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fixed = [*SMALL, "data=jsonl", f"data.path={scenes(tmp_path)}", "data.validation=0.2", "experiment=search"]
    words = ["sweep", "--outputs", str(tmp_path / "outputs"), *fixed]
    assert main([*words, "model.trunk.depth=1,0"]) == 2
    assert "model.trunk.depth" in capfd.readouterr().err
    assert not (tmp_path / "outputs").exists()
    assert main([*words, "--json", "optimizer.lr=1e-3,1e-2"]) == 0
    said = capfd.readouterr()
    told = json.loads(said.out)
    assert [row["status"] for row in told["trials"]] == ["finished", "finished"]
    assert f"best: trial {told['best'][0]['trial']}" in said.err
    assert main([*words, "optimizer.lr=1e-3,1e-2"]) == 2
    assert "holds a sweep already; go on with it: mlplatform sweep --continue" in capfd.readouterr().err
    folder = str(tmp_path / "outputs" / "search")
    assert main(["sweep", "--continue", folder, "optimizer.lr=1"]) == 2
    assert "optimizer.lr can't change within a sweep" in capfd.readouterr().err
    assert main(["sweep", "--continue", folder]) == 0
    assert "2 finished" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["optimizer.lr=1e-3"], "nothing varies; give a key several values"),
        (["sweep=grid", "optimizer.lr=interval(1e-4,1e-3)"], "optimizer.lr is an interval, and a grid needs values"),
        (["seed=1,2", "sweep=grid", "sweep.seeds=2"], "the seed varies already"),
        (["sweep=tpe", "sweep.space={optimizer.lr: '1'}"], "optimizer.lr=1 is one value"),
        (["model=llama_tiny,lama"], "no model 'lama'"),
        (["--continue", "nowhere"], "no sweep there"),
    ],
)
def test_what_can_not_be_swept_is_one_line(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "--outputs", str(tmp_path), *words]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
