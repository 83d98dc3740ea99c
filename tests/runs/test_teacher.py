"""A run that learns from a teacher, a run or a folder of transformers': started from its layers, resumed exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import SMALL, composed, curves, finished, prepared, scenes

from mlplatform.cli.main import main
from mlplatform.errors import CheckpointError, DataError, SpecError
from mlplatform.models import build
from mlplatform.registry import Spec
from mlplatform.runs.config_file import read_config
from mlplatform.runs.experiment import Experiment
from mlplatform.runs.launch import start
from mlplatform.runs.teacher import Teacher
from mlplatform.runs.weights import load_run
from mlplatform.training.checkpoints import newest_whole

STUDENT = ["task=distillation_causal", "teacher=folder", "task.cosine=1.0"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three layers."""
    return finished(tmp_path_factory.mktemp("teacher"), "model.trunk.depth=3")


def experiment(folder: Path, *overrides: str) -> Experiment:
    return Spec.of(composed(folder, *overrides).config, "run").build()


def test_a_resumed_student_ends_the_same(tmp_path: Path, teacher: Path) -> None:
    options = [*STUDENT, f"teacher.source={teacher}", "teacher.layers=[1]"]
    whole = finished(tmp_path, *options)
    path, _ = newest_whole(whole / "checkpoints")
    assert path is not None
    rows = curves(whole)
    assert {"train/hard", "train/soft", "train/cosine"} <= rows[0].keys()
    assert not any("teacher" in name for name in load_run(whole).state_dict())
    again = prepared(tmp_path, *options)
    shutil.copytree(whole / "checkpoints/step=00000006", again / "checkpoints/step=00000006")
    assert start(again) == "finished"
    assert curves(again) == [row for row in rows if row["step"] > 6]
    name = f"checkpoints/{path.name}/model.safetensors"
    assert (again / name).read_bytes() == (whole / name).read_bytes()

    another = finished(tmp_path, "model.trunk.depth=3", "seed=1")
    third = prepared(tmp_path, *STUDENT, f"teacher.source={another}", "teacher.layers=[1]")
    shutil.copytree(whole / "checkpoints/step=00000006", third / "checkpoints/step=00000006")
    with pytest.raises(CheckpointError, match=r"teacher\.source names are not those this run began to learn from"):
        start(third)


def test_a_student_starts_from_the_layers_named(tmp_path: Path, teacher: Path) -> None:
    made = experiment(tmp_path, *STUDENT, f"teacher.source={teacher}", "teacher.layers=[2,0]", "model.trunk.depth=2")
    made.check()
    own, theirs = made.build_model().state_dict(), load_run(teacher).state_dict()
    assert torch.equal(own["trunk.input.table.weight"], theirs["trunk.input.table.weight"])
    for number, layer in ((0, 2), (1, 0)):
        name = "trunk.layers.{}.mlp.up.weight"
        assert torch.equal(own[name.format(number)], theirs[name.format(layer)])
    plain = build(made.model, seed=0).state_dict()
    assert not torch.equal(own["trunk.layers.0.mlp.up.weight"], plain["trunk.layers.0.mlp.up.weight"])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["task.cosine=0"], r"teacher: task=distillation learns from a teacher; set teacher=folder teacher\.source"),
        (["task=causal_lm"], r"teacher: task=causal_lm learns from no teacher; set task=distillation"),
        (["teacher.layers=[0,1]"], r"teacher\.layers: \[0, 1\] names 2 layers; the student has 1, the teacher 3"),
        (["teacher.layers=[3]"], r"teacher\.layers: .*the teacher 3, numbered from 0"),
        (
            ["teacher.layers=[0]", "model.trunk.layer.mlp.width=40"],
            r"teacher\.layers: .*mlp\.\w+\.weight is \[40, 32\]",
        ),
        (
            ["strategy=tp", "trainer.devices=4", "model.trunk.layer.attention.heads=4", "optimizer=adamw"],
            r"teacher: model\.trunk\.layers\.0\.attention\.heads=2 can't be divided by 4 ranks; 2 ranks would fit",
        ),
        (["model.trunk.dim=16"], r"task: cosine=1\.0 compares hidden states, and the student's are 16 wide"),
    ],
)
def test_mistakes_are_found_before_anything_is_built(
    tmp_path: Path, teacher: Path, overrides: list[str], says: str
) -> None:
    untaught, plain = overrides == ["task.cosine=0"], overrides == ["task=causal_lm"]
    kept = [o for o in STUDENT if not (untaught and "teacher" in o) and not (plain and "task" in o)]
    source = [] if untaught else [f"teacher.source={teacher}"]
    made = experiment(tmp_path, *kept, *source, *overrides)
    with pytest.raises(SpecError, match=says):
        made.check()


def test_other_tokens_are_refused(tmp_path: Path, teacher: Path) -> None:
    made = experiment(tmp_path, *STUDENT, f"teacher.source={teacher}", "data.validation=0.4")
    with pytest.raises(DataError, match=r"the teacher's tokens are not the run's.*set tokenizer=file tokenizer\.path="):
        made.prepare(made.check())


# ---- BERT to DistilBERT, as transformers keeps both ----


def test_a_distilbert_from_every_second_layer_of_a_bert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertConfig, BertForMaskedLM, DistilBertForMaskedLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(**sizes, intermediate_size=48, max_position_embeddings=64)).save_pretrained(
        tmp_path / "bert"
    )
    monkeypatch.chdir(tmp_path)
    small = [o for o in SMALL if "kv_heads" not in o and "depth" not in o and "layer.dropout" not in o]
    assert main(["train", "model=distilbert", "model.trunk.depth=2", *small, "data=jsonl",
                 f"data.path={scenes(tmp_path)}", "data.validation=0.2", "tokenizer=masked_bpe", "task=distillation",
                 "teacher=folder", "teacher.source=bert", "teacher.layers=[0,2]", "optimizer=adamw"]) == 0  # fmt: skip
    (run,) = (tmp_path / "outputs/default").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert main(["export", str(run), "student"]) == 0
    student = DistilBertForMaskedLM.from_pretrained("student")
    assert student.config.n_layers == 2


def test_a_folder_of_theirs_needs_its_yaml(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"teacher\.model: .* is no run folder, so the YAML of its model is needed"):
        Teacher(source=str(tmp_path)).shell()
    with pytest.raises(CheckpointError, match="no such folder"):
        Teacher(source=str(tmp_path / "nowhere")).shell()


def test_a_run_is_found_by_the_name_of_its_experiment(tmp_path: Path) -> None:
    first = finished(tmp_path, "experiment=first", "trainer.max=2 steps")
    small = [*SMALL, "data=jsonl", f"data.path={scenes(tmp_path)}", "data.validation=0.2", "trainer.max=2 steps"]
    start_from = [f"outputs={tmp_path / 'outputs'}", "init_from=first/last", "teacher.source=first/last"]
    assert main(["train", *small, *start_from, *STUDENT, "experiment=second"]) == 0
    (second,) = (tmp_path / "outputs/second").iterdir()
    config = read_config(second)
    assert config["init_from"] == config["teacher"]["source"] == str(first.resolve())
