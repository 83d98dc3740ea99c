"""timm's networks as towers: the same features as timm's own, on any device, frozen norms, and what can't be built."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import timm
import torch

import mlplatform as mp
from mlplatform.errors import DataError, SpecError
from mlplatform.models.costs import forward_flops


def model(name: str, **fields: Any) -> Any:
    return mp.build({"kind": "single_tower", "trunk": {"kind": "timm", "name": name, **fields}}).eval()


def images(side: int = 96, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def filled(net: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Move every parameter and statistic away from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(noise + 0.5 if name.endswith("running_var") else tensor + 0.1 * (noise - 0.5))
    return net


@pytest.mark.parametrize(
    ("name", "fields", "arguments"),
    [
        ("test_resnet", {}, {}),
        ("test_vit", {}, {}),
        ("test_resnet", {"channels": 1, "options": {"layers": [2, 1, 1, 1]}}, {"in_chans": 1, "layers": [2, 1, 1, 1]}),
        (
            "swin_tiny_patch4_window7_224",
            {"options": {"depths": [1, 1], "img_size": 96}},
            {"depths": (1, 1), "img_size": 96},
        ),
    ],
)
def test_tokens_are_timms_last_features_row_by_row(
    name: str, fields: dict[str, Any], arguments: dict[str, Any]
) -> None:
    net = filled(timm.create_model(name, num_classes=0, **arguments)).eval()
    ours = model(name, **fields)
    ours.trunk.net.load_state_dict(net.state_dict())
    pixels = images(160 if "vit" in name else 96, fields.get("channels", 3))
    with torch.no_grad():
        out, expected = ours(pixel_values=pixels, output_hidden_states=True), net.forward_features(pixels)
    assert expected.shape[-1 if expected.ndim == 3 or "swin" in name else 1] == ours.trunk.dim
    if expected.ndim == 4:
        expected = expected.flatten(1, 2) if "swin" in name else expected.flatten(2).transpose(1, 2)
    assert torch.equal(out.last_hidden_state, expected)
    assert torch.equal(out.hidden_states[-1], expected)
    assert ours.trunk.prefix_tokens == (1 if name == "test_vit" else 0)


@pytest.mark.parametrize(("name", "stages"), [("test_resnet", [1, 2]), ("swin_tiny_patch4_window7_224", [0, 1])])
def test_maps_are_the_last_stage_asked_for(name: str, stages: list[int]) -> None:
    options = {"img_size": 96} if "swin" in name else {}
    net = filled(timm.create_model(name, features_only=True, out_indices=stages, **options)).eval()
    ours = model(name, stages=stages, options=options)
    ours.trunk.net.load_state_dict(net.state_dict())
    with torch.no_grad():
        got, expected = ours.trunk.maps(images()), net(images())[-1]
    expected = expected.permute(0, 3, 1, 2) if "swin" in name else expected
    assert got.shape[1] == ours.trunk.dim
    assert torch.equal(got, expected)


def test_dilation_keeps_the_map_fine() -> None:
    coarse, fine = (model("resnet18", stages=[4], stride=stride).trunk.maps(images(64)) for stride in (None, 16))
    assert coarse.shape[-2:] == (2, 2)
    assert fine.shape[-2:] == (4, 4)


def test_initial_values_are_timms_own() -> None:
    fresh = model("test_vit").trunk.net.state_dict()
    torch.manual_seed(0)
    for name, tensor in timm.create_model("test_vit", num_classes=0).state_dict().items():
        assert torch.equal(fresh[name], tensor), name


def test_a_model_on_meta_takes_its_tables_back() -> None:
    """What no file holds (Swin's relative positions) is there again when the weights are."""
    kept = model("swin_tiny_patch4_window7_224", options={"depths": [1, 1], "img_size": 96})
    empty = mp.build(kept.spec, device="meta")
    empty.load_state_dict(kept.state_dict(), assign=True)
    empty.trunk.restore_buffers()
    with torch.no_grad():
        assert torch.equal(
            empty.eval()(pixel_values=images()).last_hidden_state, kept(pixel_values=images()).last_hidden_state
        )


def test_frozen_norms_compute_the_same_and_stay() -> None:
    free = model("test_resnet")
    filled(free)
    frozen = model("test_resnet", frozen_norm=True)
    frozen.trunk.net.load_state_dict({k: v for k, v in free.trunk.net.state_dict().items() if "tracked" not in k})
    with torch.no_grad():
        expected = free(pixel_values=images()).last_hidden_state
    before = copy.deepcopy(dict(frozen.named_buffers()))
    assert not any("bn" in name for name, _ in frozen.named_parameters())
    frozen.train()(pixel_values=images()).last_hidden_state.sum().backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in frozen.named_buffers())
    assert torch.allclose(frozen(pixel_values=images()).last_hidden_state, expected, atol=1e-5)


def test_flops_of_resnet_50_are_as_published() -> None:
    """4.1 billion multiply-adds at 224 x 224: 49 positions of the last map. arXiv:1512.03385, table 1, says 3.8."""
    spec = {"kind": "single_tower", "trunk": {"kind": "timm", "name": "resnet50"}}
    total = sum(forward_flops(mp.build(spec, device="meta"), 49))
    assert total == pytest.approx(2 * 4.09e9, rel=0.01)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "resnt50"}, "did you mean 'resnet50'"),
        ({"name": "hf-hub:timm/resnet18"}, "no network of timm"),
        ({"name": "test_resnet", "options": {"colour": 1}}, "colour"),
        ({"name": "test_resnet", "stages": [9]}, "out_indices"),
    ],
)
def test_what_timm_cannot_build_is_one_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said) as error:
        model(**fields)
    assert "\n" not in str(error.value)
    assert "model.trunk" in str(error.value)


def test_without_timm_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SpecError, match="pip install timm"):
        model("resnet18")


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({}, "no 'pixel_values'"),
        ({"pixel_values": images(channels=4)}, "4 channels"),
        ({"pixel_values": images()[0]}, "3 dimensions"),
    ],
)
def test_other_images_are_one_line(batch: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        model("test_resnet")(**batch)
