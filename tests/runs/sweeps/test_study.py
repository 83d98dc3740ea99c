"""The study: each point once, in whatever processes; what died is tried again; another space is refused."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import jobs
import pytest
from jobs import LOSS, study

from mlplatform.errors import RunError, SpecError
from mlplatform.runs.sweeps import summary
from mlplatform.runs.sweeps.space import Interval, Values
from mlplatform.runs.sweeps.study import MOST_DEATHS, Outcome
from mlplatform.runs.sweeps.sweeping import work
from mlplatform.runs.sweeps.trials import read
from mlplatform.runs.sweeps.workers import workers, working

X = {"x": Values(("1", "2", "3", "4"))}


def finish(found: object, value: float = 1.0) -> Outcome:
    return Outcome("finished", {LOSS: [value]})


def points(folder: Path, storage: str | None) -> list[str]:
    one = study(folder, X, storage=storage)
    found = []
    while (point := one.take()) is not None:
        found.append(point.values["x"])
        one.tell(point, finish(point))
    return found


@pytest.mark.parametrize("storage", [None, "journal"])
def test_a_grid_is_gone_through_once_also_by_several(tmp_path: Path, storage: str | None) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:  # the trials' server hears no SIGTERM, nor its processes
        parts = pool.starmap(points, [(tmp_path, storage)] * 2)
    assert sorted(parts[0] + parts[1]) == ["1", "2", "3", "4"]


def test_a_point_whose_process_died_is_tried_again_and_counted_once(tmp_path: Path) -> None:
    first = study(tmp_path, X)
    lost, stopped = first.take(), first.take()
    assert lost is not None
    assert stopped is not None
    first.tell(stopped, Outcome("stopped"))
    again = study(tmp_path, X)
    assert again.recover() == (1, [])
    left = []
    while (point := again.take()) is not None:
        left.append(point.values["x"])
        again.tell(point, finish(point))
    assert sorted(left) == ["1", "2", "3", "4"]
    assert len(again.trials()) == 4


def test_the_point_of_a_worker_that_lives_is_left_to_it(tmp_path: Path) -> None:
    first = study(tmp_path, X)
    first.worker = 7
    first.take()
    context = multiprocessing.get_context("forkserver")
    holder = context.Process(target=hold, args=(tmp_path, 7))
    holder.start()
    try:
        while not (tmp_path / "held").exists():
            holder.join(0.05)
            assert holder.is_alive()
        assert study(tmp_path, X).recover() == (0, [])
        with pytest.raises(RunError, match="this sweep is running"), working(tmp_path, 7):
            pass
        assert [(one.number, one.pid, one.alive) for one in workers(tmp_path)] == [(7, holder.pid, True)]
    finally:
        holder.kill()
        holder.join()
    assert study(tmp_path, X).recover() == (1, [])
    assert not workers(tmp_path)[0].alive


def hold(folder: Path, worker: int) -> None:
    with working(folder, worker):
        (folder / "held").write_text("")
        import time

        time.sleep(60)


def test_a_point_that_takes_its_workers_with_it_fails_in_the_end(tmp_path: Path) -> None:
    for death in range(1, MOST_DEATHS):
        dying = study(tmp_path, {"x": Values(("1",))})
        point = dying.take()
        assert point is not None
        assert point.runs == ("run-0",) * (death > 1)
        dying.begun(point, ["run-0"])
        assert study(tmp_path, {"x": Values(("1",))}).recover() == (1, [])
    dying.take()
    back, [(point, outcome)] = study(tmp_path, {"x": Values(("1",))}).recover()
    assert (back, outcome.status, outcome.runs) == (0, "failed", ("run-0",))
    assert str(outcome.reason).startswith("3 workers died that tried it")
    after = study(tmp_path, {"x": Values(("1",))})
    assert after.take() is None
    assert after.ended()


def test_a_search_that_goes_on_does_not_draw_its_first_points_again(tmp_path: Path) -> None:
    drawn = []
    for _ in range(3):
        one = study(tmp_path, {"x": Interval(0.0, 1.0)}, search={"kind": "random"}, trials=3)
        point = one.take()
        assert point is not None
        one.tell(point, finish(point))
        drawn.append(point.values["x"])
    assert len(set(drawn)) == 3


def test_what_is_hopeless_for_one_worker_is_for_all(tmp_path: Path) -> None:
    first, other = study(tmp_path, X), study(tmp_path, X)
    point = first.take()
    assert point is not None
    first.tell(point, Outcome("failed", reason="sweep.metrics: nothing like that", hopeless=True))
    with pytest.raises(RunError, match=r"sweep\.metrics: nothing like that"):
        other.take()


def test_a_study_of_another_space_or_metric_is_refused(tmp_path: Path) -> None:
    study(tmp_path, X)
    with pytest.raises(
        RunError, match=r"another search space \(x: \{1, 2, 3, 4\} before, \{9\} now\); set experiment="
    ):
        study(tmp_path, {"x": Values(("9",))})
    with pytest.raises(RunError, match=r"another metric .*train/loss"):
        study(tmp_path, X, metrics={"train/loss": "minimize"})


def test_a_storage_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"sweep\.storage: the study 'sweep' can't be opened") as caught:
        study(tmp_path, X, storage="sqlite:////nowhere/at/all.db")
    assert "\n" not in str(caught.value)


def test_every_search_finds_the_bottom_of_a_bowl(tmp_path: Path) -> None:
    space = {"x": Interval(-10.0, 10.0)}
    for kind in ("random", "tpe", "cmaes"):
        one = study(tmp_path / kind, space, search={"kind": kind}, trials=40)
        while (point := one.take()) is not None:
            one.tell(point, jobs.bowl(point))
        found = one.study.best_value
        assert found < (1.0 if kind == "random" else 0.3), kind


def test_two_workers_of_a_random_search_do_not_draw_alike(tmp_path: Path) -> None:
    drawn = [
        study(tmp_path / str(seed), {"x": Interval(0.0, 1.0)}, seed, search={"kind": "random"}).take()
        for seed in (0, 1)
    ]
    assert drawn[0] is not None
    assert drawn[1] is not None
    assert drawn[0].values != drawn[1].values


def test_cmaes_needs_intervals_and_a_pruner_one_metric(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cmaes moves in intervals, and x lists its values"):
        study(tmp_path, X, search={"kind": "cmaes"})
    with pytest.raises(SpecError, match=r"points are given up by one metric"):
        study(tmp_path, X, metrics={LOSS: "minimize", "b": "maximize"}, pruner={"kind": "median"})


def test_points_are_tried_in_processes_and_a_crash_stops_none_of_the_others(tmp_path: Path) -> None:
    space = {"x": Values(("1", "fails", "dies", "3", "6"))}
    told: list[str] = []
    work(study(tmp_path, space), jobs.bowl, 2, lambda point, outcome, seconds: told.append(point.values["x"]))
    rows = {row["values"]["x"]: row for row in read(tmp_path)}
    assert sorted(told) == sorted(rows) == sorted(space["x"].values)
    assert {x: row["status"] for x, row in rows.items()} == {
        "1": "finished", "3": "finished", "6": "finished", "fails": "failed", "dies": "failed",
    }  # fmt: skip
    assert rows["fails"]["reason"].startswith("ValueError: x can't be that (see ")
    assert "x can't be that" in (tmp_path / "logs" / "trial-0001.txt").read_text()
    assert rows["dies"]["reason"] == "its process was killed by SIGKILL (out of memory?)"
    lines = summary.ending(list(rows.values()), {LOSS: "minimize"})
    assert lines[:2] == ["3 finished, 2 failed", f"best: trial 3: {LOSS} 0 with x=3"]
    assert lines[2].startswith("failed: trial 1: ValueError")


def test_a_killed_sweep_goes_on_to_the_same_total(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=sweep_slowly, args=(tmp_path,))
    process.start()
    while not read(tmp_path):
        process.join(0.05)
        assert process.is_alive()
    process.kill()
    process.join()
    before = len(read(tmp_path))
    sweep_slowly(tmp_path)
    rows = read(tmp_path)
    assert 0 < before < 4
    assert sorted(row["values"]["x"] for row in rows) == ["1", "2", "3", "4"]


def test_a_point_whose_worker_died_as_it_was_drawn_is_drawn_again(tmp_path: Path) -> None:
    space = {"x": Values(("1", "2")), "y": Values(("a", "b"))}
    first = study(tmp_path, space)
    assert first.take() is not None
    half = first.study.ask()  # as a kill leaves it: running, with one of its two values
    half.suggest_categorical("x", ("1", "2"))
    again = study(tmp_path, space)
    assert again.recover()[0] == 2
    drawn = [again.take() for _ in range(4)]
    assert sorted(tuple(point.values.values()) for point in drawn if point) == [(x, y) for x in "12" for y in "ab"]
    assert again.take() is None


def test_a_signal_to_every_process_gives_the_points_back(tmp_path: Path) -> None:
    """As a scheduler sends it: the server of the trials' processes is not to die of it, nor a trial before its time."""
    process = multiprocessing.get_context("spawn").Process(target=leading, args=(tmp_path,))
    process.start()
    while not read(tmp_path):
        process.join(0.05)
        assert process.is_alive()
    os.killpg(process.pid or 0, signal.SIGTERM)
    process.join()
    assert process.exitcode == STOPPED_WELL
    rows = read(tmp_path)
    again = study(tmp_path, X)
    assert again.recover() == (0, [])  # nothing is held by nobody: all was given back
    left = []
    while (point := again.take()) is not None:
        left.append(point.values["x"])
    assert sorted([*left, *(row["values"]["x"] for row in rows)]) == ["1", "2", "3", "4"]
    assert all(row["status"] == "finished" for row in rows)


STOPPED_WELL = 7


def leading(folder: Path) -> None:
    os.setsid()
    try:
        sweep_slowly(folder)
    except KeyboardInterrupt:
        os._exit(STOPPED_WELL)


def sweep_slowly(folder: Path) -> None:
    work(study(folder, X), jobs.slow, 1, lambda *_: None)


def test_the_front_of_two_metrics_and_the_interval_of_seeds() -> None:
    def row(trial: int, loss: float, rate: float) -> dict[str, object]:
        return {"trial": trial, "status": "finished", "metrics": {"loss": loss, "rate": rate}}

    rows = [row(0, 1.0, 5.0), row(1, 2.0, 9.0), row(2, 2.0, 4.0), row(3, 1.0, 4.0)]
    front = summary.best(rows, {"loss": "minimize", "rate": "maximize"})
    assert [found["trial"] for found in front] == [0, 1]
    # t(0.975, 2) = 4.3027, standard deviation 1: 4.3027 / sqrt(3)
    assert summary.shown([1.0, 2.0, 3.0]) == "2 ± 2.5"
