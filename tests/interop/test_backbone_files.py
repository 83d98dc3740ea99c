"""Image networks' own files: transformers' three kinds of them load, give the same maps, and are written back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file
from torch import Tensor

import mlplatform as mp

WIDTHS = {"embedding_size": 12, "hidden_sizes": [10, 20, 40], "depths": [1, 2, 1]}
RESNET = tf.ResNetConfig(**WIDTHS, out_features=["stage3"])
BASIC = tf.ResNetConfig(**WIDTHS, layer_type="basic", out_features=["stage1", "stage2"], downsample_in_first_stage=True)
FASTVIT = {"inference_mode": True, "layers": [1, 1, 1, 1, 1], "embed_dims": [16, 32, 64, 128, 256]}
BACKBONE = {"backbone": "test_resnet", "out_indices": [1, 2, 3], "num_channels": 1}
SWIN = {"depths": [1, 1], "img_size": 96}
FILES: list[tuple[type, Any]] = [
    (tf.ResNetBackbone, RESNET),
    (tf.ResNetBackbone, BASIC),
    (tf.ResNetModel, RESNET),
    (tf.TimmBackbone, tf.TimmBackboneConfig(**BACKBONE)),
    (tf.TimmBackbone, tf.TimmBackboneConfig(**BACKBONE, freeze_batch_norm_2d=True, output_stride=16)),
    (tf.TimmWrapperModel, tf.TimmWrapperConfig(architecture="test_resnet")),
    (tf.TimmWrapperModel, tf.TimmWrapperConfig(architecture="fastvit_mci3", model_args=FASTVIT)),
    (tf.TimmWrapperModel, tf.TimmWrapperConfig(architecture="swin_tiny_patch4_window7_224", model_args=SWIN)),
]


def moved(model: Any) -> Any:
    """Move parameters and statistics away from where they start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand(tensor.shape, generator=generator))
            else:
                tensor.fill_(7)  # batches a norm has seen
    return model.eval()


def last_map(output: Any) -> Tensor:
    return output.feature_maps[-1] if "feature_maps" in output else output.last_hidden_state


@pytest.mark.parametrize(("kind", "config"), FILES, ids=lambda value: getattr(value, "__name__", ""))
def test_files_load_and_are_written_back(kind: Any, config: Any, tmp_path: Path) -> None:
    theirs = moved(kind(config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = mp.load(tmp_path / "theirs")
    pixels = torch.randn(2, ours.trunk.channels, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = last_map(theirs(pixels)), ours.trunk.maps(pixels)
        tokens = ours(pixel_values=pixels).last_hidden_state
    expected = expected.permute(0, 3, 1, 2) if ours.trunk.last_channels else expected
    assert torch.allclose(got, expected, atol=1e-5)
    assert torch.equal(tokens, got.flatten(2).transpose(1, 2))
    mp.save(ours, tmp_path / "ours")
    old, new = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) and old[name].dtype == new[name].dtype for name in old)
    _, said = (
        kind.from_pretrained(tmp_path / "ours", output_loading_info=True) if kind is not tf.TimmBackbone else (0, {})
    )
    assert not any(said.values()), said


def test_half_precision_leaves_counts_whole(tmp_path: Path) -> None:
    moved(tf.TimmWrapperModel(tf.TimmWrapperConfig(architecture="test_resnet"))).save_pretrained(tmp_path / "theirs")
    ours = mp.load(tmp_path / "theirs", dtype=torch.bfloat16)
    kinds = {name: tensor.dtype for name, tensor in ours.state_dict().items()}
    assert {kinds.pop(name) for name in list(kinds) if name.endswith("num_batches_tracked")} == {torch.int64}
    assert set(kinds.values()) == {torch.bfloat16}
    assert ours(pixel_values=torch.randn(1, 3, 96, 96)).last_hidden_state.dtype == torch.bfloat16
