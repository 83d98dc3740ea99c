"""Heads, shards, dtypes, dialects and memory of loading; what saving leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mlplatform as mp
from mlplatform.errors import CheckpointError, SpecError

SIZE = ["trunk.dim=32", "trunk.depth=2", "trunk.input.vocab=50", "trunk.layer.mlp.width=48"]
LLAMA = [*SIZE, "trunk.layer.attention.heads=4", "trunk.layer.attention.kv_heads=2"]
BERT = [*SIZE, "trunk.layer.attention.heads=4", "trunk.context_length=40"]
TOKENS = torch.arange(12).reshape(2, 6) + 5


def same(one: torch.nn.Module, two: torch.nn.Module) -> None:
    with torch.no_grad():
        assert torch.equal(one(input_ids=TOKENS).last_hidden_state, two(input_ids=TOKENS).last_hidden_state)


def test_shards_of_ours_and_theirs(tmp_path: Path) -> None:
    model = mp.build("llama", LLAMA).eval()
    mp.save(model, tmp_path / "ours", shard_size=20_000)
    assert len(list((tmp_path / "ours").glob("model-*-of-*.safetensors"))) > 2
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20kB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    same(mp.load(tmp_path / "theirs"), model)


def test_fewer_shards_leave_none_of_the_old(tmp_path: Path) -> None:
    model = mp.build("llama", LLAMA).eval()
    mp.save(model, tmp_path / "out", shard_size=20_000)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    mp.save(model, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.json", "model.safetensors", "notes.txt"]
    same(mp.load(tmp_path / "out"), model)


def test_bf16_stays_bf16_and_dtype_converts(tmp_path: Path) -> None:
    model = mp.build("llama", LLAMA, dtype=torch.bfloat16).eval()
    mp.save(model, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = mp.load(tmp_path / "a")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in mp.load(tmp_path / "a", dtype=torch.float32).parameters()} == {torch.float32}
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
    for name, tensor in load_file(tmp_path / "a" / "model.safetensors").items():
        assert torch.equal(theirs.state_dict()[name], tensor)


def test_another_head_is_initialised_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mp.save(mp.build("bert", BERT), tmp_path / "mlm")
    model = mp.load(tmp_path / "mlm", head="token_classification")
    assert model(input_ids=TOKENS).logits.shape == (2, 6, 2)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert "token_classification" in caplog.text
    assert "cls.predictions" in caplog.text
    with pytest.raises(CheckpointError, match="head='nothing': this model's YAML has masked_lm"):
        mp.load(tmp_path / "mlm", head="nothing")


def test_bare_files_and_old_norm_names(tmp_path: Path) -> None:
    model = mp.build("bert", [*BERT, "head=pooled"]).eval()
    mp.save(model, tmp_path / "bare")
    tensors = load_file(tmp_path / "bare" / "model.safetensors")
    assert "embeddings.word_embeddings.weight" in tensors
    old = {}
    for name, tensor in tensors.items():
        if "LayerNorm" in name:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old[name] = tensor
    save_file(old, tmp_path / "bare" / "model.safetensors")
    same(mp.load(tmp_path / "bare"), model)


def test_tied_copies_in_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mp.save(mp.build("llama", [*LLAMA, "heads.lm.tied=true"]), tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    assert "head.out.weight" not in mp.load(tmp_path / "m").state_dict()
    tensors["lm_head.weight"] += 1
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    assert torch.equal(mp.load(tmp_path / "m").state_dict()["head.out.weight"], tensors["lm_head.weight"])
    assert "not tied" in caplog.text


def test_a_model_without_hf_is_refused(tmp_path: Path) -> None:
    spec = dict(mp.compose("llama", LLAMA).data)
    del spec["hf"]
    with pytest.raises(SpecError, match=r"no hf\.weights"):
        mp.save(mp.build(spec), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failed_save_leaves_what_was_there(tmp_path: Path) -> None:
    model = mp.build("llama", LLAMA).eval()
    mp.save(model, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    code = f"""
import resource, mlplatform as mp
from mlplatform.errors import CheckpointError
model = mp.build("llama", {[*LLAMA, "trunk.input.vocab=5000"]})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    mp.save(model, {str(tmp_path / "out")!r})
except CheckpointError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "can't be written" in done.stdout, done.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_loading_needs_little_more_than_the_weights(tmp_path: Path) -> None:
    size = ["trunk.dim=1024", "trunk.depth=4", "trunk.layer.mlp.width=4096", "trunk.input.vocab=4096"]
    size += ["trunk.layer.attention.heads=16", "trunk.layer.attention.kv_heads=16"]
    mp.save(mp.build("llama", size), tmp_path / "big")
    weights = (tmp_path / "big" / "model.safetensors").stat().st_size
    code = f"""
import resource
import mlplatform as mp, mlplatform.interop, mlplatform.models
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
mp.compose("llama")
before = peak()
model = mp.load({str(tmp_path / "big")!r})
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert weights > 250e6
    assert int(done.stdout) <= 1.35 * weights  # the weights and one window of the file
