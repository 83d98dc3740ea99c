"""Residual networks of any widths, beside torchvision's."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import mlplatform as mp
from mlplatform.errors import SpecError
from mlplatform.models.costs import forward_flops


def model(**fields: Any) -> Any:
    return mp.build({"kind": "single_tower", "trunk": {"kind": "resnet", **fields}}).eval()


def theirs(block: Any, seed: int = 0) -> ResNet:
    """Return a torchvision network of two blocks in its second stage, with other values than at the start."""
    torch.manual_seed(seed)
    net = ResNet(block, [1, 2, 1, 1]).eval()
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(tensor + 0.1 * torch.rand(tensor.shape) if "running_var" in name else 0.9 * tensor + 0.01)
    return net


def renamed(name: str) -> str:
    """Return our name of a tensor of torchvision's."""
    name = re.sub(r"^conv1", "stem.conv", re.sub(r"^bn1", "stem.norm", name))
    name = re.sub(r"^layer(\d)", lambda m: f"residuals.{int(m[1]) - 1}", name)
    name = name.replace("downsample.0", "shortcut.conv").replace("downsample.1", "shortcut.norm")
    name = re.sub(r"\.conv(\d)", lambda m: f".convs.{int(m[1]) - 1}.conv", name)
    return re.sub(r"\.bn(\d)", lambda m: f".convs.{int(m[1]) - 1}.norm", name)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("block", "widths"), [(Bottleneck, [256, 512, 1024, 2048]), (BasicBlock, [64, 128, 256, 512])])
def test_maps_are_torchvisions(block: Any, widths: list[int], frozen: bool) -> None:
    net = theirs(block)
    state = {renamed(name): tensor for name, tensor in net.state_dict().items() if not name.startswith("fc")}
    ours = model(widths=widths, depths=[1, 2, 1, 1], bottleneck=block is Bottleneck)
    if frozen:
        ours.trunk.freeze_norms()
        state = {name: tensor for name, tensor in state.items() if "tracked" not in name}
    ours.trunk.load_state_dict(state)
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(pixels))))
        expected = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        assert torch.allclose(ours.trunk.maps(pixels), expected, rtol=1e-4, atol=1e-5)
        tokens = ours(pixel_values=pixels, output_hidden_states=True)
    assert torch.allclose(tokens.last_hidden_state, expected.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)
    assert torch.equal(tokens.hidden_states[-1], tokens.last_hidden_state)


def test_frozen_norms_are_nothing_to_train() -> None:
    free = model(widths=[8, 12], depths=[1, 1], stem=4)
    frozen = model(widths=[8, 12], depths=[1, 1], stem=4)
    frozen.trunk.freeze_norms()
    assert any("norm" in name for name, _ in free.named_parameters())
    assert not any("norm" in name for name, _ in frozen.named_parameters())
    assert {n for n, _ in frozen.named_buffers()} == {
        n for n in free.state_dict() if "norm" in n and "tracked" not in n
    }


@pytest.mark.parametrize(
    ("fields", "dim", "shape"),
    [
        ({}, 12, (4, 6)),
        ({"halve_first": True}, 12, (2, 3)),
        ({"stages": [0, 1]}, 8, (8, 12)),
        ({"stages": [0]}, 4, (8, 12)),
        ({"stages": [-2]}, 8, (8, 12)),
        ({"halve_early": True, "channels": 1}, 12, (4, 6)),
    ],
)
def test_sizes_of_maps(fields: dict[str, Any], dim: int, shape: tuple[int, int]) -> None:
    ours = model(**{"widths": [8, 12], "depths": [1, 2], "stem": 4, **fields})
    got = ours.trunk.maps(torch.randn(1, fields.get("channels", 3), 32, 48))
    assert got.shape == (1, dim, *shape)
    assert ours.trunk.dim == dim


def test_flops_of_resnet_50() -> None:
    spec = {
        "kind": "single_tower",
        "trunk": {"kind": "resnet", "widths": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3]},
    }
    assert sum(forward_flops(mp.build(spec, device="meta"), 49)) == pytest.approx(2 * 4.09e9, rel=0.01)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"widths": [8], "depths": [1, 2]}, "one of each for every stage"),
        ({"widths": [8, 0], "depths": [1, 2]}, "one of each for every stage"),
        ({"widths": [], "depths": []}, "one of each for every stage"),
        ({"widths": [8, 8], "depths": [1, 2], "stages": [3]}, "there are the stages 1 to 2"),
    ],
)
def test_what_cannot_be_built_is_one_line(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        model(**fields)
