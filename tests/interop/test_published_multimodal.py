"""Published files of models of parts: sparse nested configs give the published sizes, older names of tensors load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import mlplatform as mp
from mlplatform.cli.pretrained import Families
from mlplatform.errors import CheckpointError
from mlplatform.interop.parts import head_of, read_config

VISION: dict[str, Any] = {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "num_attention_heads": 16}
VISION |= {"model_type": "clip_vision_model", "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768}
LLAVA: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {**VISION, "vocab_size": 32000},
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}
BLIP: dict[str, Any] = {
    "image_text_hidden_size": 256,
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "model_type": "blip",
    "projection_dim": 512,
    "text_config": {"model_type": "blip_text_model", "num_attention_heads": 12, "encoder_hidden_size": 768},
    "text_config_dict": None,
    "vision_config": {"model_type": "blip_vision_model", "dropout": 0.0, "num_channels": 3},
    "vision_config_dict": None,
}
SIZES = {
    "llava": (LLAVA, 7_063_427_072),
    "blip": ({**BLIP, "architectures": ["BlipForConditionalGeneration"]}, 223_971_644),
    "blip_retrieval": ({**BLIP, "architectures": ["BlipForImageTextRetrieval"]}, 223_744_258),
    "blip_vqa": ({**BLIP, "architectures": ["BlipForQuestionAnswering"]}, 361_230_140),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    config, size = SIZES[name]
    find = Families().find
    family = find(config)
    spec = read_config(config, family, head_of(config, family, None), find)
    assert sum(p.numel() for p in mp.build(spec, device="meta").parameters()) == size
    assert sum(p.numel() for p in mp.build(name, device="meta").parameters()) == size


def test_a_class_without_yaml() -> None:
    config = {**BLIP, "architectures": ["BlipModel"]}
    with pytest.raises(CheckpointError, match="architectures='BlipModel'; the YAML can say BlipFor"):
        head_of(config, Families().find(config), None)


def small_llava() -> torch.nn.Module:
    part = ["trunk.dim=32", "trunk.depth=2", "trunk.layer.attention.heads=2", "trunk.layer.mlp.width=48"]
    changes = [f"{at}.{change}" for at in ("vision", "language") for change in part]
    changes += ["language.trunk.layer.attention.kv_heads=2", "language.heads.lm.tied=false"]
    return tiny.stirred(mp.build("llava_tiny", changes))


DIALECTS: dict[str, Callable[[str], str]] = {
    "of 2023": lambda name: name.replace("vision_tower.", "vision_tower.vision_model."),
    "of 2025": lambda name: (
        "lm_head.weight"
        if name == "language_model.lm_head.weight"
        else "model."
        + name.replace("language_model.model.", "language_model.").replace("tower.", "tower.vision_model.")
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_older_names(dialect: str, tmp_path: Path) -> None:
    model = small_llava()
    mp.save(model, tmp_path)
    tensors = {DIALECTS[dialect](name): t for name, t in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    again = mp.load(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again[name]), name
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["model_type"] == "llama"
