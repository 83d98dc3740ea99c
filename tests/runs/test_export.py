"""From a run folder to a model with its weights, and to Hugging Face's format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import finished

from mlplatform.errors import CheckpointError
from mlplatform.generation.generate import generate
from mlplatform.runs.export import export, load_run, load_tokenizer
from mlplatform.training.checkpoints import newest_whole


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that kept averaged weights."""
    return finished(tmp_path_factory.mktemp("export"), "trainer.ema=0.5")


def last(folder: Path) -> Path:
    """Return a run's last checkpoint."""
    path, _ = newest_whole(folder / "checkpoints")
    assert path is not None
    return path


def test_a_run_loads_with_its_averaged_weights(run: Path) -> None:
    plain, averaged = load_run(run, averaged=False), load_run(run)
    weights = load_file(last(run) / "model.safetensors")
    means = load_file(last(run) / "ema.safetensors")
    assert not averaged.training
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, weights[name])
        assert torch.equal(averaged.state_dict()[name], means[name])
    assert any(not torch.equal(weights[name], means[name]) for name in means)


def test_the_dtype_is_the_one_asked_for(run: Path) -> None:
    assert {p.dtype for p in load_run(run, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_a_loaded_run_writes_the_sample_the_run_ended_with(run: Path) -> None:
    sample = (run / "samples" / "step=00000008.txt").read_text()
    model = load_run(run, averaged=False)
    assert generate(model, load_tokenizer(run), "\n", max_new_tokens=120, seed=0) == sample


def test_an_exported_run_is_loaded_by_transformers(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    export(run, tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    words = AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours, tokens = load_run(run), torch.tensor([load_tokenizer(run).encode("To be, or not to be")])
    assert words("To be, or not to be")["input_ids"] == tokens[0].tolist()
    with torch.no_grad():
        assert (ours(input_ids=tokens).logits - theirs(input_ids=tokens).logits).abs().max() < 1e-5


def test_a_checkpoint_of_another_model_is_refused(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(run, tmp_path / "copy")
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("depth: 1", "depth: 2"))
    with pytest.raises(CheckpointError, match=r"'trunk\.layers\.1\..*' is not in both the weights and the config"):
        load_run(copy)
