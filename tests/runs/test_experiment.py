"""The root of a run's config: the weights it starts from, and what is warned of."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import composed, curves, finished, prepared

from mlplatform.errors import CheckpointError, SpecError
from mlplatform.models import build
from mlplatform.registry import Spec
from mlplatform.runs.experiment import Experiment
from mlplatform.runs.launch import start as start_run
from mlplatform.training.checkpoints import newest_whole


def experiment(folder: Path, *overrides: str) -> Experiment:
    """Return the experiment of a small run."""
    return Spec.of(composed(folder, *overrides).config, "run").build()


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A small Llama as transformers saves it, of the size of the small runs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


def test_a_new_run_starts_from_its_seed(tmp_path: Path) -> None:
    made = experiment(tmp_path, "seed=5")
    made.check()
    same = build(made.model, seed=5).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in made.build_model().state_dict().items())


def test_a_run_starts_from_a_folder_of_hugging_faces(
    tmp_path: Path, pretrained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = experiment(tmp_path, f"init_from={pretrained}")
    made.check()
    model = made.build_model()
    theirs = load_file(pretrained / "model.safetensors")
    assert torch.equal(model.state_dict()["trunk.input.table.weight"], theirs["model.embed_tokens.weight"])
    q = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(model.state_dict()["trunk.layers.0.attention.q.weight"], theirs[q])
    assert model.training
    assert model.spec == made.model.data
    assert caplog.messages == []


def test_values_that_differ_from_the_files_are_warned_of(
    tmp_path: Path, pretrained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scaling = "{kind: linear, factor: 2.0}"
    rope = ["model.trunk.layer.attention.rope.theta=500.0", f"+model.trunk.layer.attention.rope.scaling={scaling}"]
    with caplog.at_level(logging.WARNING, "mlplatform"):
        experiment(tmp_path, f"init_from={pretrained}", "model.trunk.norm.eps=1e-6", *rope).check()
    (line,) = caplog.messages
    assert "was made with other values than this run's model" in line
    assert "trunk.norm.eps=1e-06 (1e-05 there)" in line
    assert "trunk.layer.attention.rope.theta=500.0 (10000.0 there)" in line
    assert "trunk.layer.attention.rope.scaling.kind='linear' (None there)" in line
    assert "dropout" not in line


def test_a_run_starts_from_the_averaged_weights_of_another(tmp_path: Path) -> None:
    first = finished(tmp_path, "trainer.ema=0.5")
    path, _ = newest_whole(first / "checkpoints")
    assert path is not None
    made = experiment(tmp_path, f"init_from={first}")
    made.check()
    means = load_file(path / "ema.safetensors")
    state = made.build_model().state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in means.items())


@pytest.mark.parametrize("name", ["no/such/folder/here", "/no/such", "gpt2"])
def test_a_source_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{name}'"):
        experiment(tmp_path, f"init_from={name}").check()


def test_what_is_frozen_stays_and_a_resumed_run_ends_the_same(tmp_path: Path) -> None:
    frozen = "freeze=[trunk.input,'*.mlp']"
    whole = finished(tmp_path, frozen)
    start = build(experiment(tmp_path, frozen).model, seed=0).state_dict()
    path, _ = newest_whole(whole / "checkpoints")
    assert path is not None
    end, moments = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
    for name, tensor in end.items():
        still = name.startswith("trunk.input") or ".mlp." in name
        assert torch.equal(tensor, start[name]) == still, name
        assert any(key.endswith(f"/{name}") for key in moments) != still, name
    told = json.loads((whole / "run.json").read_text())
    assert told["trained_parameters"] == sum(t.numel() for n, t in end.items() if not torch.equal(t, start[n]))
    assert "of them train" in (whole / "log.txt").read_text()
    again = prepared(tmp_path, frozen)
    shutil.copytree(whole / "checkpoints" / "step=00000006", again / "checkpoints" / "step=00000006")
    assert start_run(again) == "finished"
    assert curves(again) == [row for row in curves(whole) if row["step"] > 6]
    assert (again / "checkpoints" / path.name / "model.safetensors").read_bytes() == (
        path / "model.safetensors"
    ).read_bytes()


def test_patterns_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"freeze: 'trunk\.inputt' names no parameter .*did you mean 'trunk\.input'"):
        experiment(tmp_path, "freeze=[trunk.inputt]").check()
    with pytest.raises(SpecError, match="no parameter to train"):
        experiment(tmp_path, "freeze=['*']").check()
