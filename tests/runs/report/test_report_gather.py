"""What a report says of run folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_runs import made, predictions, sweep

from mlplatform.errors import RunError
from mlplatform.runs.report.gather import DRAWN, LISTED, gather, recipe_header
from mlplatform.runs.report.page import render


def test_seeds_are_grouped_and_what_differs_is_told(tmp_path: Path) -> None:
    told = gather(tmp_path, sweep(tmp_path))
    assert set(told.differing) == {"optimizer.lr", "seed"}
    assert [(row["label"], row["count"]) for row in told.results] == [("lr=0.003", 3), ("lr=0.01", 3), ("lr=0.03", 3)]
    assert told.runs[4].label == "lr=0.01 seed=1"
    found = told.results[0]["means"]["validation/loss"]
    values = [run.metrics["validation/loss"] for run in told.runs[:3]]
    assert found.value == pytest.approx(sum(values) / 3)
    assert found.half is not None
    assert told.sweep is not None
    assert told.sweep["weights"]["optimizer.lr"] > 0.7 > told.sweep["weights"]["seed"]
    assert told.sweep["axes"][0]["name"] == "optimizer.lr"
    assert told.sweep["best"][-1] == min(told.sweep["results"])


def test_one_run_has_both_losses_in_one_chart_and_no_sweep(tmp_path: Path) -> None:
    told = gather(tmp_path, [made(tmp_path, "2026-11-23_120000")])
    assert told.charts[0] == {"title": "loss", "series": ["train/loss", "validation/loss"]}
    assert [chart["title"] for chart in told.charts[1:4]] == ["gradient norm", "learning rate", "tokens a second"]
    assert (told.sweep, told.differing) == (None, {})
    assert told.title == "plays/2026-11-23_120000"


def test_whether_more_is_better_is_seen_in_what_runs_called_their_best(tmp_path: Path) -> None:
    folders = sweep(tmp_path)
    for folder in folders:
        record = json.loads((folder / "run.json").read_text())
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            if "validation/loss" in row:
                row["validation/accuracy"] = 1 / row["validation/loss"]
        record["best"] = {"step": 60, "validation/accuracy": max(r.get("validation/accuracy", 0) for r in rows)}
        record["metrics"] = rows[-1]
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = gather(tmp_path, folders)
    assert (told.monitor, told.higher) == ("validation/accuracy", True)
    assert told.sweep is not None
    assert told.sweep["best"][-1] == max(told.sweep["results"])


def test_of_many_runs_the_best_are_drawn_and_all_are_counted(tmp_path: Path) -> None:
    folders = [made(tmp_path, f"2026-11-23_{n:06d}", lr=0.001 * (n + 1), steps=12) for n in range(DRAWN + 5)]
    told = gather(tmp_path, folders)
    assert (told.total, len(told.runs), len(told.drawn)) == (DRAWN + 5, DRAWN + 5, DRAWN)
    worst_drawn = max(run.metrics["validation/loss"] for run in told.drawn)
    left_out = [run for run in told.runs if run not in told.drawn]
    assert all(run.metrics["validation/loss"] >= worst_drawn for run in left_out)


def test_a_sweep_tells_of_the_trials_that_failed_and_of_those_given_up(tmp_path: Path) -> None:
    folders = sweep(tmp_path)
    home, script = folders[0].parent, "<script>document.title='stolen'</script>"
    about = {"overrides": [], "trials": 12, "metrics": {"train/loss": "maximize"}}
    (home / "sweep.json").write_text(json.dumps(about))

    def row(number: int, status: str, reason: str | None) -> str:
        runs = [str(folders[number % 9])] if status != "failed" else []
        told = {"trial": number, "values": {"optimizer.lr": "1e-3"}, "status": status, "runs": runs, "reason": reason}
        return json.dumps({**told, "metrics": {}, "seeds": {}, "seconds": 1.0}) + "\n"

    lines = [*(row(n, "finished", None) for n in range(8)), row(8, "pruned", None), row(9, "failed", script)]
    (home / "trials.jsonl").write_text("".join(lines) + "{cut sh")
    told = gather(tmp_path, folders)
    assert told.trials is not None
    assert (told.trials["total"], told.trials["counts"]) == (12, {"finished": 8, "pruned": 1, "failed": 1})
    assert (told.monitor, told.higher) == ("train/loss", True)  # as the sweep judges
    page = render(told)
    assert "&lt;script&gt;document.title=&#39;stolen&#39;&lt;/script&gt;" in page
    assert script not in page
    assert folders[8].name in page
    assert gather(tmp_path, [*folders, made(tmp_path, "a", experiment="other")]).trials is None


def test_of_thousands_of_settings_the_best_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    folders = [made(tmp_path, f"2026-11-23_{n:06d}", lr=0.0001 * (n + 1), steps=6) for n in range(LISTED + 30)]
    told = gather(tmp_path, folders)
    assert (told.settings, len(told.results), len(told.runs), told.total) == (LISTED + 30, LISTED, LISTED, LISTED + 30)
    losses = [row["means"]["validation/loss"].value for row in told.results]
    assert losses == sorted(losses)
    assert told.counts == {"finished": LISTED + 30}
    page = render(told)
    assert f"The best {LISTED} of {LISTED + 30} settings" in page
    assert len(page.encode()) < 500_000


def test_runs_without_metrics_and_broken_ones(tmp_path: Path) -> None:
    silent = made(tmp_path, "2026-11-23_110000", status="failed", error="RunError: no room", metrics={}, best=None)
    (silent / "metrics.jsonl").unlink()
    broken = made(tmp_path, "2026-11-23_120000")
    (broken / "run.json").write_text("{")
    told = gather(tmp_path, [silent, broken])
    assert [run.row["error"] for run in told.runs] == ["RunError: no room"]
    assert told.charts == []
    with pytest.raises(RunError, match="can't be read"):
        gather(tmp_path, [broken])


def test_samples_pictures_with_boxes_and_sound(tmp_path: Path) -> None:
    import wave

    from PIL import Image

    folder = made(tmp_path, "2026-11-23_120000")
    (folder / "samples").mkdir()
    (folder / "samples" / "step=00000060.txt").write_text("To be\n")
    Image.new("RGB", (200, 100), "red").save(tmp_path / "scene.png")
    with wave.open(str(tmp_path / "word.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\0\0" * 800)
    found = {"category": "cat", "score": 0.875, "bbox": [20, 10, 100, 50]}
    into = predictions(
        folder,
        [
            {"number": 0, "image": str(tmp_path / "scene.png"), "prediction": {"objects": [found]}, "objects": [found]},
            {"number": 1, "audio": str(tmp_path / "word.wav"), "text": "one", "prediction": {"text": "won"}},
            {"number": 2, "image": "media/2-image.png", "label": "3", "prediction": {"label": "3", "score": 0.5}},
            {"number": 3, "image": str(tmp_path / "gone.png"), "prediction": {"label": "3"}},
        ],
    )
    (into / "media").mkdir()
    Image.new("L", (8, 8), 128).save(into / "media" / "2-image.png")
    own = gather(tmp_path, [folder]).detail["runs"]["plays/2026-11-23_120000"]
    assert own["texts"] == [("step=00000060", "To be")]
    scene, word, digit, gone = own["evaluations"][0]["shown"]
    assert scene.picture.startswith("data:image/webp;base64,")
    assert scene.boxes[1] == {"x": 10, "y": 10, "width": 50, "height": 50, "kind": "found", "label": "cat 0.88"}
    assert word.sound.startswith("data:audio/wav;base64,")
    assert (word.given, word.predicted) == ({"text": "one"}, {"text": "won"})
    assert digit.picture.startswith("data:image/png")
    assert gone.picture is None


def test_pictures_beyond_the_budget_are_counted_and_left_out(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    folder = made(tmp_path, "2026-11-23_120000")
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    predictions(folder, [{"number": n, "image": str(tmp_path / "noise.png"), "prediction": {}} for n in range(12)])
    detail = gather(tmp_path, [folder]).detail
    shown = detail["runs"]["plays/2026-11-23_120000"]["evaluations"][0]["shown"]
    pictures = [one.picture for one in shown if one.picture]
    assert 0 < len(pictures) < 12
    assert detail["refused"] == 12 - len(pictures)
    assert sum(map(len, pictures)) <= 160_000


def test_the_header_of_a_shipped_recipe_is_found() -> None:
    lines = recipe_header(["mlplatform", "train", "recipes=vit_digits", "seed=1"])
    assert any(line.strip().startswith("baseline") for line in lines)
    assert not any("@package" in line or "defaults" in line for line in lines)
    assert recipe_header(["mlplatform", "train", "recipes=../secret"]) == []
