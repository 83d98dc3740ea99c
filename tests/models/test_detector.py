"""The detector: any backbone in its place, padding that changes nothing, FLOPs, training, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mlplatform as mp
from mlplatform.cli.compose import compose_model
from mlplatform.errors import DataError, SpecError
from mlplatform.models.costs import forward_flops

SMALL = ["{}.dim=16", "{}.depth=2", "{}.layer.attention.heads=2", "{}.layer.mlp.width=24"]


def spec(*overrides: str, backbone: str = "test_resnet") -> dict[str, Any]:
    small = [word.format(tower) for tower in ("encoder", "decoder") for word in SMALL]
    small += ["decoder.layer.cross.heads=2", "decoder.context_length=5", "heads.detection.labels=3"]
    return compose_model("detr", [*small, f"backbone.trunk.name={backbone}", *overrides]).check().config


def images(height: int = 96, width: int = 128) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


OBJECTS = [
    {"class_labels": torch.tensor([2, 0]), "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.3, 0.2]])},
    {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.6, 0.6]])},
]


@pytest.mark.parametrize(
    "backbone", ["test_resnet", "test_efficientnet", "test_convnext", "swin_tiny_patch4_window7_224"]
)
def test_any_network_of_maps_stands_in_its_place(backbone: str) -> None:
    options = "{depths: [1, 1, 1, 1], img_size: [96, 128]}" if "swin" in backbone else "{}"
    more = [f"+backbone.trunk.options={options}", "backbone.trunk.stages=[1, 2, 3]"]
    out = mp.build(spec(*more, backbone=backbone)).eval()(pixel_values=images(), labels=OBJECTS)
    assert out.logits.shape == (2, 5, 4)
    assert out.pred_boxes.shape == (2, 5, 4)
    assert out.loss.isfinite()


def test_activations_within_norms_are_kept_and_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    mp.build(spec(), device="meta")
    assert not caplog.records
    model = mp.build(spec("backbone.trunk.stages=[1]", backbone="test_efficientnet"), device="meta")
    assert "hold activations" in caplog.text
    kept = [m for m in model.modules() if type(m).__name__ == "FrozenBatchNormAct2d"]
    assert any(type(m.act).__name__ == "SiLU" for m in kept)


def test_another_backbone_and_other_positions_by_name() -> None:
    own = ["model@backbone=resnet", "block/grid_positions@encoder.input.positions=learned_2d"]
    small = [f"{tower}.depth=1" for tower in ("encoder", "decoder")]
    shrunk = ["backbone.trunk.depths=[1,1,1,1]", "backbone.trunk.widths=[8,8,8,16]"]
    model = mp.build(compose_model("detr", [*own, *small, *shrunk]).check().config)
    assert model.spec["backbone"]["hf"]["model_type"] == "resnet"
    assert model.encoder.input.positions.kind == "learned_2d"
    model(pixel_values=images(), labels=OBJECTS).loss.backward()
    assert model.trunk.stem.conv.weight.grad.abs().sum() > 0


def test_padding_below_and_beside_changes_nothing_but_what_the_network_sees_of_it() -> None:
    """A map is the same for an image and for the image with 32 zero columns more, but at the seam: compare means."""
    model = mp.build(spec()).eval()
    pixels = images()
    wider = torch.cat((pixels, torch.randn(2, 3, 96, 64)), -1)
    mask = torch.ones(2, 96, 192, dtype=torch.long)
    mask[:, :, 128:] = 0
    grid = model.trunk.maps(pixels)
    model.trunk.maps = lambda x: grid if x.shape[-1] == 128 else torch.cat((grid, torch.randn(*grid.shape[:3], 2)), -1)
    with torch.no_grad():
        plain, padded = model(pixel_values=pixels), model(pixel_values=wider, pixel_mask=mask)
    assert torch.allclose(plain.logits, padded.logits, atol=1e-5)
    assert torch.allclose(plain.pred_boxes, padded.pred_boxes, atol=1e-5)


def test_auxiliary_losses_leave_the_outputs_alone_unless_norms_are_fed_back() -> None:
    plain = mp.build(spec()).eval()
    papers = mp.build(spec("heads.detection.auxiliary=true")).eval()
    theirs = mp.build(spec("heads.detection.auxiliary=true", "decoder.final_norm=every")).eval()
    torch.nn.init.uniform_(plain.decoder.final_norm.weight)
    outs = []
    for model in (plain, papers, theirs):
        model.load_state_dict(plain.state_dict())
        outs.append(model(pixel_values=images(), labels=OBJECTS))
    assert torch.equal(outs[0].logits, outs[1].logits)
    assert outs[1].loss > outs[0].loss
    assert outs[1].loss_dict.keys() == {*outs[0].loss_dict, *(f"{name}_0" for name in outs[0].loss_dict)}
    assert not torch.allclose(outs[0].logits, outs[2].logits, atol=1e-4)


def test_it_learns_where_things_are() -> None:
    torch.manual_seed(0)
    steady = ["encoder.input.dropout=0", "encoder.layer.dropout=0", "decoder.layer.dropout=0"]
    model = mp.build(spec("init.std=0.3", *steady)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(200):
        loss = model(pixel_values=images(), labels=OBJECTS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.55 * losses[0]


def test_flops_equal_torchs_counter() -> None:
    model = mp.build(spec(), device="meta")
    with FlopCounterMode(display=False) as counter:
        model(pixel_values=torch.empty(1, 3, 160, 160, device="meta"))  # timm's own size for it: 25 positions
    assert sum(forward_flops(model, 25)) == counter.get_total_flops()


def test_what_it_refuses_is_one_line() -> None:
    model = mp.build(spec())
    with pytest.raises(DataError, match="no 'pixel_values'"):
        model()
    with pytest.raises(DataError, match=r"pixel_mask is \[2, 96, 96\]"):
        model(pixel_values=images(), pixel_mask=torch.ones(2, 96, 96))
    with pytest.raises(SpecError, match="backbone: this model gives no feature maps"):
        mp.build({**spec(), "backbone": compose_model("vit_tiny").check().config})
    with pytest.raises(SpecError, match="state its stages"):
        mp.build({**spec(), "backbone": {"kind": "single_tower", "trunk": {"kind": "timm", "name": "test_vit"}}})(
            pixel_values=images(160, 160)
        )
