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

from mlplatform.cli.compose import compose_model
from mlplatform.errors import CheckpointError, PlatformError, SpecError
from mlplatform.models import build
from mlplatform.registry import Spec
from mlplatform.runs.experiment import Experiment
from mlplatform.runs.launch import start as start_run
from mlplatform.runs.weights import load_run, start_of
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


# ---- parts that start with the weights of others ----


def test_a_part_starts_with_anothers_weights_and_the_rest_as_new(tmp_path: Path) -> None:
    first = finished(tmp_path, "model.heads.lm.tied=false")
    made = experiment(tmp_path, f"init_parts={{trunk: {first}}}", "model.heads.lm.tied=false", "seed=5")
    made.check()
    begun, given = made.build_model().state_dict(), load_run(first).state_dict()
    fresh = build(made.model, seed=5).state_dict()
    assert all(torch.equal(begun[name], given[name]) for name in given if name.startswith("trunk."))
    assert torch.equal(begun["head.out.weight"], fresh["head.out.weight"])
    assert not torch.equal(begun["head.out.weight"], given["head.out.weight"])


@pytest.mark.parametrize("whole", [True, False])
def test_a_tower_starts_with_hugging_faces_weights(tmp_path: Path, whole: bool) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(3)
    spec = compose_model("clip_tiny").check().config
    trunk = spec["vision"]["trunk"]
    size = {
        "hidden_size": trunk["dim"],
        "num_hidden_layers": trunk["depth"],
        "image_size": trunk["input"]["image_size"],
    }
    size |= {"patch_size": trunk["input"]["patch"], "intermediate_size": trunk["layer"]["mlp"]["width"]}
    vision = CLIPVisionConfig(**size, num_attention_heads=trunk["layer"]["attention"]["heads"])
    theirs = CLIPModel(CLIPConfig(vision_config=vision.to_dict())) if whole else CLIPVisionModel(vision)
    theirs.save_pretrained(tmp_path / "clip")
    model = start_of(spec, None, {"vision": str(tmp_path / "clip")}, seed=1).state_dict()
    fresh = build(spec, seed=1).state_dict()
    known = load_file(tmp_path / "clip" / "model.safetensors")
    (name,) = (name for name in known if "text" not in name and name.endswith("layers.0.self_attn.q_proj.weight"))
    assert torch.equal(model["vision.trunk.layers.0.attention.q.weight"], known[name])
    assert all(torch.equal(model[name], fresh[name]) for name in model if name.startswith("text."))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("{{trunks: {first}}}", r"init_parts.trunks: the model has no such part \(did you mean 'trunk'\?\)"),
        ("{{trunk: no/such}}", "'no/such' is neither a folder here"),
        ("{{trunk: {first}}}", r"init_parts.trunk=.*is \[\d+, 32\] there and \[\d+, 64\] in this run's model"),
    ],
)
def test_a_part_that_does_not_fit_is_refused(tmp_path: Path, parts: str, words: str) -> None:
    first = finished(tmp_path)
    with pytest.raises(PlatformError, match=words):
        experiment(tmp_path, f"init_parts={parts.format(first=first)}", "model.trunk.dim=64").check()
