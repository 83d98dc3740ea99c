"""`evaluate`: the metrics of training come out again, on any split, with a prediction for each record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import composed as composed_text
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from mlplatform.cli.compose import compose
from mlplatform.cli.main import main
from mlplatform.errors import DataError, RunError
from mlplatform.runs import record
from mlplatform.runs.evaluate import evaluate
from mlplatform.runs.launch import prepare, start

SMALL = [
    "model=vit_tiny",
    "model.trunk.depth=1",
    "model.trunk.dim=24",
    "model.trunk.layer.attention.heads=2",
    "model.trunk.layer.mlp.width=48",
    "model.trunk.input.image_size=8",
    "model.trunk.input.patch=4",
    "model.trunk.context_length=5",
    "data=digits",
    "data.test=0.1",
    "task=image_classification",
    "processor=image",
    "tokenizer=null",
    "batch.sequences=64",
    "batch.micro=32",
    "trainer.max='60 steps'",
    "trainer.validate_every='20 steps'",
    "trainer.accelerator=cpu",
]


def trained(config: dict[str, Any]) -> Path:
    folder, experiment = prepare(config, overrides=[], argv=["test"])
    assert start(folder, experiment) == "finished"
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("digits")
    return trained(compose("train", [*SMALL, f"outputs={outputs}"]).check().config)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_the_last_validation_comes_out_again(digits: Path) -> None:
    done = evaluate(digits)
    known = record.read(digits)["metrics"]
    assert done.metrics == pytest.approx({name: known[name] for name in done.metrics}, rel=1e-6)
    assert set(done.metrics) == {f"validation/{name}" for name in ("loss", "accuracy", "f1", "matthews")}
    assert json.loads((done.folder / "metrics.json").read_text())["metrics"] == done.metrics
    assert done.notes == ()


def test_every_record_has_a_prediction_and_they_give_the_accuracy(digits: Path) -> None:
    done = evaluate(digits, "test")
    said = lines(done.folder)
    assert [line["number"] for line in said] == list(range(record.read(digits)["data"]["test"]["records"]))
    right = sum(line["label"] == line["prediction"]["label"] for line in said)
    assert done.metrics["test/accuracy"] == pytest.approx(right / len(said), abs=1e-6)
    assert right / len(said) > 0.3
    assert said[0]["place"].startswith("digits: row ")
    assert said[0]["image"] == "media/0-image.png"
    assert (done.folder / said[0]["image"]).is_file()


def test_the_training_split_is_measured_as_it_stands(digits: Path) -> None:
    once, again = evaluate(digits, "train"), evaluate(digits, "train")
    assert once.metrics == again.metrics
    assert once.predictions == record.read(digits)["data"]["train"]["records"]


def test_other_data_are_kept_apart_and_classes_stay_the_runs(digits: Path) -> None:
    here = evaluate(digits, changes={"data.validation": 0.3}, limit=2)
    assert here.folder.name.startswith("validation-")
    assert here.predictions == 64
    assert json.loads((here.folder / "metrics.json").read_text())["changes"] == {"data.validation": 0.3}


def test_what_the_model_is_can_not_be_changed(digits: Path) -> None:
    with pytest.raises(RunError, match=r"model\.trunk\.depth makes another model or run of it"):
        evaluate(digits, changes={"model.trunk.depth": 2})
    with pytest.raises(DataError, match=r"no test split; it has train, validation; set data\.test="):
        evaluate(digits, "test", {"data.test": 0.0})


def test_a_language_model_has_metrics_and_no_predictions(tmp_path: Path) -> None:
    folder = trained(composed_text(tmp_path, "trainer.max='4 steps'").config)
    done = evaluate(folder)
    known = record.read(folder)["metrics"]
    assert done.metrics == pytest.approx({name: known[name] for name in done.metrics}, rel=1e-6)
    assert done.predictions == 0
    assert sorted(p.name for p in done.folder.iterdir()) == ["metrics.json"]


def test_the_verb(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = ["--outputs", str(digits.parent.parent)]
    assert main(["evaluate", "run=default/last", "--json", *outputs]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["split"], told["run"]) == ("validation", str(digits))
    assert main(["evaluate", str(digits), "--split", "tests"]) == 2
    assert "--split tests: there are train, validation, test (did you mean 'test'?)" in capsys.readouterr().err


def test_transformers_reads_the_classes_and_the_processor(digits: Path, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    assert main(["export", str(digits), str(target)]) == 0
    assert AutoConfig.from_pretrained(target).id2label == {i: str(i) for i in range(10)}
    theirs = AutoModelForImageClassification.from_pretrained(target).eval()
    said = lines(evaluate(digits, "test").folder)[:20]
    from mlplatform.data.record_sources import Digits

    images = Digits().tables()["train"][0].rows  # type: ignore[attr-defined]
    picked = [images[int(line["place"].rpartition(" ")[2]) - 1]["image"] for line in said]
    pixels = AutoImageProcessor.from_pretrained(target, use_fast=False)(
        [image[:, :, None].repeat(3, 2) for image in picked], return_tensors="pt"
    )
    with torch.no_grad():
        best = theirs(**pixels).logits.argmax(-1).tolist()
    assert [theirs.config.id2label[i] for i in best] == [line["prediction"]["label"] for line in said]
