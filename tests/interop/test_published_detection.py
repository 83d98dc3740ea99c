"""Detectors as the Hub has them: config.json files from before nested backbones, beside transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import save_file

import mlplatform as mp
from mlplatform.cli.compose import compose_model
from mlplatform.errors import CheckpointError, PlatformError
from mlplatform.models.describe import describe

# facebook/detr-resnet-50's config.json, without its labels
PUBLISHED: dict[str, Any] = {
    "_name_or_path": "facebook/detr-resnet-50", "activation_dropout": 0.0, "activation_function": "relu",
    "architectures": ["DetrForObjectDetection"], "attention_dropout": 0.0, "auxiliary_loss": False,
    "backbone": "resnet50", "bbox_cost": 5, "bbox_loss_coefficient": 5, "class_cost": 1, "classifier_dropout": 0.0,
    "d_model": 256, "decoder_attention_heads": 8, "decoder_ffn_dim": 2048, "decoder_layerdrop": 0.0,
    "decoder_layers": 6, "dice_loss_coefficient": 1, "dilation": False, "dropout": 0.1, "encoder_attention_heads": 8,
    "encoder_ffn_dim": 2048, "encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_coefficient": 0.1, "giou_cost": 2,
    "giou_loss_coefficient": 2, "init_std": 0.02, "init_xavier_std": 1.0, "is_encoder_decoder": True,
    "mask_loss_coefficient": 1, "max_position_embeddings": 1024, "model_type": "detr", "num_hidden_layers": 6,
    "num_queries": 100, "position_embedding_type": "sine", "scale_embedding": False, "torch_dtype": "float32",
    "transformers_version": "4.12.0.dev0", "use_timm_backbone": True, "use_pretrained_backbone": True,
    "backbone_config": None,
}  # fmt: skip
SMALL = {
    "d_model": 32,
    "encoder_layers": 1,
    "num_hidden_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
}
SMALL |= {"num_queries": 5, "encoder_attention_heads": 4, "decoder_attention_heads": 4}


def published(folder: Path, **change: Any) -> tuple[Any, Path]:
    """Write a small model's files with a config.json of the old kind; return it as transformers reads them."""
    old = {**PUBLISHED, **SMALL, **change}
    (folder / "config.json").parent.mkdir()
    (folder / "config.json").write_text(json.dumps(old))
    torch.manual_seed(0)
    model = tf.DetrForObjectDetection(tf.DetrConfig.from_pretrained(folder)).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim > 1:
                tensor.copy_(torch.randn(tensor.shape) / tensor[0].numel() ** 0.5)
            elif not name.endswith("running_var"):
                tensor.add_(0.1 * torch.randn(tensor.shape))
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(old))
    return model, folder


@pytest.mark.parametrize("change", [{"backbone": "resnet18"}, {"backbone": "resnet18", "dilation": True}])
def test_a_file_that_names_its_backbone_at_the_top(change: dict[str, Any], tmp_path: Path) -> None:
    theirs, folder = published(tmp_path / "old", **change)
    ours = mp.load(folder)
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(pixels)
        assert not torch.allclose(theirs(-pixels).logits, expected.logits, atol=1e-4)
        assert torch.allclose(ours(pixel_values=pixels).logits, expected.logits, atol=1e-5)
        assert torch.allclose(ours(pixel_values=pixels).pred_boxes, expected.pred_boxes, atol=1e-5)
    assert ours.trunk.maps(pixels).shape[-2:] == ((6, 8) if "dilation" in change else (3, 4))
    mp.save(ours, tmp_path / "new")
    again, said = tf.DetrForObjectDetection.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(said.values()), said
    with torch.no_grad():
        assert torch.equal(again.eval()(pixels).logits, expected.logits)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"backbone": "resnt18"}, "did you mean 'resnet18'"),
        ({"position_embedding_type": "rotary"}, "the YAML can say 'sine', 'learned'"),
        ({"architectures": ["DetrForSegmentation"]}, "DetrForObjectDetection, DetrModel"),
    ],
)
def test_what_no_yaml_can_say_is_one_line(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**PUBLISHED, **change}))
    with pytest.raises(PlatformError, match=said) as error:
        mp.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_resnet_of_other_blocks_is_one_line(tmp_path: Path) -> None:
    resnet = {"model_type": "resnet", "layer_type": "pre-activated"}
    config = {**PUBLISHED, "use_timm_backbone": False, "backbone_config": resnet}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="layer_type='pre-activated'; the YAML can say 'bottleneck', 'basic'"):
        mp.load(tmp_path)


@pytest.mark.parametrize(("name", "size"), [("detr", 41_524_768), ("detr_resnet_101", 60_464_672)])
def test_sizes_are_those_of_transformers(name: str, size: int) -> None:
    config = tf.DetrConfig(backbone="resnet50" if name == "detr" else "resnet101", num_labels=91)
    with torch.device("meta"):
        theirs = tf.DetrForObjectDetection(config)
    assert describe(compose_model(name).check().config).total == sum(p.numel() for p in theirs.parameters()) == size
