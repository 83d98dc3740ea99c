"""Adapters: peft reads ours on Hugging Face's model, merged is the same, resume is exact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import composed, curves, finished, prepared

import mlplatform as mp
from mlplatform.cli.main import main
from mlplatform.errors import CheckpointError, RunError, SpecError
from mlplatform.registry import Spec
from mlplatform.runs.export import write_adapter
from mlplatform.runs.launch import start
from mlplatform.runs.weights import load_run
from mlplatform.training.adapters import merge
from mlplatform.training.checkpoints import newest_whole

IDS = torch.randint(5, 90, (2, 12), generator=torch.Generator().manual_seed(0))


def theirs(name: str) -> Any:
    """Return a tiny random model of transformers' whose every parameter matters."""
    import transformers as hf

    torch.manual_seed(3)
    sizes: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    if name == "gpt2":
        model: Any = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    elif name == "t5":
        config = hf.T5Config(vocab_size=300, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2)
        model = hf.T5ForConditionalGeneration(config)
    elif name == "bert":
        model = hf.BertForSequenceClassification(hf.BertConfig(**sizes, intermediate_size=48, num_labels=3))
    else:
        made = hf.LlamaConfig(
            **sizes, intermediate_size=48, num_key_value_heads=1, max_position_embeddings=64, rms_norm_eps=1e-5,
            tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )  # fmt: skip
        model = hf.LlamaForCausalLM(made)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def lora(**fields: Any) -> Any:
    return Spec.of({"kind": "lora", "rank": 4, **fields}, "adapter", "adapter").build()


def logits(model: Any, name: str) -> torch.Tensor:
    extra = {"decoder_input_ids": IDS[:, :5]} if name == "t5" else {}
    with torch.no_grad():
        return model(input_ids=IDS, **extra).logits


CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"targets": ["*.attention", "*.mlp.down"], "alpha": 5.0}),
    ("llama", {"dora": True}),
    ("gpt2", {"targets": ["*.attention.q", "*.attention.v", "*.attention.out"]}),  # q, k and v are one matrix there
    ("gpt2", {"targets": ["*.attention.k", "*.mlp"]}),
    ("bert", {"targets": ["*.attention.q", "*.mlp"], "train": ["head"]}),
    ("bert", {"dora": True}),
    ("t5", {"targets": ["*.attention.v", "*.cross.q"]}),
]


@pytest.mark.parametrize(("name", "fields"), CASES, ids=[f"{name}-{number}" for number, (name, _) in enumerate(CASES)])
def test_peft_reads_it_on_their_model(tmp_path: Path, name: str, fields: dict[str, Any]) -> None:
    from peft import PeftModel

    base = theirs(name)
    base.save_pretrained(tmp_path / "base")
    model: Any = mp.load(tmp_path / "base")
    plain = logits(model, name)
    made = lora(**fields)
    made.apply(model, seed=1)
    model.eval()
    torch.testing.assert_close(logits(model, name), plain, atol=1e-5, rtol=1e-5)  # B starts at zero
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
    ours = logits(model, name)
    assert (ours - plain).abs().max() > 0.01
    write_adapter(model, made, str(tmp_path / "base"), tmp_path / "adapter")
    read = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert (logits(read, name) - ours).abs().max() < 1e-5
    merged = merge(model)
    assert (logits(merged, name) - ours).abs().max() < 1e-5
    mp.save(merged, tmp_path / "merged")
    assert (logits(type(base).from_pretrained(tmp_path / "merged").eval(), name) - ours).abs().max() < 1e-5


def test_what_has_no_place_there_is_refused(tmp_path: Path) -> None:
    theirs("gpt2").save_pretrained(tmp_path / "base")
    model: Any = mp.load(tmp_path / "base")
    made = lora(dora=True)
    made.apply(model)
    with pytest.raises(SpecError, match=r"'transformer\.h\.0\.attn\.c_attn\.weight' .*is no plain matrix.*DoRA"):
        write_adapter(model, made, "x", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


# ---- runs ----


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A Llama as transformers saves it, of the size of the small runs but for a layer more."""
    theirs("llama").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(base: Path) -> list[str]:
    start = [f"init_from={base}", "model.trunk.depth=2", "adapter=lora", "adapter.rank=2", "adapter.dropout=0.1"]
    return [*start, "optimizer=adamw", "optimizer.lr=0.02", "adapter.targets=['*.attention','*.mlp']"]


def test_a_run_keeps_its_adapter_alone_and_resumes_exactly(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    run = finished(tmp_path, *adapted(base), "trainer.ema=0.5")
    path, _ = newest_whole(run / "checkpoints")
    assert path is not None
    end = load_file(path / "model.safetensors")
    assert len(end) == 2 * 7 * 2  # A and B of the seven linear maps of each of two layers
    assert all(".lora_" in name for name in end)
    assert not (path / "config.json").exists()
    assert json.loads((run / "run.json").read_text())["trained_parameters"] == sum(t.numel() for t in end.values())

    again = prepared(tmp_path, *adapted(base), "trainer.ema=0.5")
    shutil.copytree(run / "checkpoints/step=00000006", again / "checkpoints/step=00000006")
    assert start(again) == "finished"
    assert curves(again) == [row for row in curves(run) if row["step"] > 6]
    for name in ("model", "ema", "optimizer"):
        assert (again / "checkpoints" / path.name / f"{name}.safetensors").read_bytes() == (
            path / f"{name}.safetensors"
        ).read_bytes()

    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run), "merged"]) == 0
    assert main(["export", "--adapter", str(run), "adapter"]) == 0
    ours = load_run(run)
    read = PeftModel.from_pretrained(theirs("llama"), "adapter").eval()
    assert (logits(read, "llama") - logits(ours, "llama")).abs().max() < 1e-5
    whole: Any = type(theirs("llama")).from_pretrained("merged").eval()
    assert (logits(whole, "llama") - logits(ours, "llama")).abs().max() < 1e-5
    assert (logits(theirs("llama"), "llama") - logits(ours, "llama")).abs().max() > 0.01

    other = theirs("llama")
    other.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1e-3
    other.save_pretrained(base)
    with pytest.raises(CheckpointError, match=r"its adapter stands on other weights than those of init_from="):
        load_run(run)
    shutil.copytree(run / "checkpoints/step=00000006", (third := prepared(tmp_path, *adapted(base), "trainer.ema=0.5"))
                    / "checkpoints/step=00000006")  # fmt: skip
    with pytest.raises(CheckpointError, match=r"are not those this run's adapter began on"):
        start(third)


def test_an_adapter_on_a_run_of_ours_and_on_an_adapter(tmp_path: Path) -> None:
    first = finished(tmp_path)
    options = ["adapter=lora", "optimizer=adamw", "trainer.max=2 steps"]
    second = finished(tmp_path, f"init_from={first}", *options)
    third = finished(tmp_path, f"init_from={second}", *options)
    one, two, three = (load_run(run).state_dict() for run in (first, second, third))
    assert one.keys() == two.keys() == three.keys()
    moved = {name for name in one if not torch.equal(one[name], two[name])}
    assert moved == {"trunk.layers.0.attention.q.weight", "trunk.layers.0.attention.v.weight"}
    assert {name for name in one if not torch.equal(two[name], three[name])} == moved


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["init_from=null"], "adapter: an adapter stands on weights that are there; set init_from"),
        (["freeze=[trunk]"], "adapter: an adapter freezes all but itself"),
        (["adapter.targets=['*.attention.qq']"], r"adapter\.targets: '\*\.attention\.qq' names no linear map"),
        (["adapter.targets=[head]"], r"adapter\.targets: 'head' names no linear map an adapter can stand on"),
        (["adapter.train=[hat]"], r"adapter\.train: '!hat' names no parameter"),
        (["adapter.quantize=nf4"], r"adapter: quantize=nf4 needs a CUDA device, which is not here"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    tmp_path: Path, base: Path, overrides: list[str], says: str
) -> None:
    if torch.cuda.is_available() and "nf4" in says:
        pytest.skip("this machine has a CUDA device")
    config = composed(tmp_path, *adapted(base), "model.heads.lm.tied=false", *overrides).config
    experiment = Spec.of(config, "run").build()
    with pytest.raises(SpecError, match=says):
        experiment.check()


def test_a_run_without_an_adapter_has_none_to_export(tmp_path: Path) -> None:
    from mlplatform.runs.export import export_adapter

    run = finished(tmp_path, "trainer.max=2 steps")
    with pytest.raises(RunError, match="this run has no adapter; leave --adapter away"):
        export_adapter(run, tmp_path / "adapter")
