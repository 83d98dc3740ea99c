"""Networks of timm as towers: ResNet, FastViT, and any other that belongs to one model only."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mlplatform.context import Context
from mlplatform.errors import DataError, SpecError, did_you_mean
from mlplatform.registry import Positive, Text, block


class ImageNetwork(nn.Module):
    """What networks of images share where a `transformer` may stand: maps or tokens from `pixel_values`."""

    norm_spec = None
    table = None
    dim: int
    channels: int
    last_channels = False
    """Whether maps are (batch, rows, columns, dim)."""
    image_size: tuple[int, int] = (224, 224)
    """Rows and columns of the images FLOPs are counted for."""

    @property
    def input(self) -> ImageNetwork:
        """What reads the batch: the network itself."""
        return self

    def features(self, pixels: Tensor) -> Tensor:
        """(batch, channels, height, width) -> the last map or tokens, in the network's own layout"""
        raise NotImplementedError

    def freeze_norms(self) -> None:
        """Make every batch norm a fixed scale and shift; its weights are then buffers of the same names."""
        raise NotImplementedError

    def size(self, batch: Mapping[str, Tensor]) -> tuple[int, torch.device]:
        """Return a length and where the images lie. The number of positions is known only when they went through."""
        pixels = batch.get("pixel_values")
        if pixels is None:
            raise DataError("the batch has no 'pixel_values'; this model reads images")
        if pixels.ndim != 4 or pixels.shape[1] != self.channels:
            given = f"{pixels.shape[1]} channels" if pixels.ndim == 4 else f"{pixels.ndim} dimensions"
            raise DataError(f"pixel_values has {given}; this model reads (batch, {self.channels}, height, width)")
        return 1, pixels.device

    def maps(self, pixels: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, dim, rows, columns)"""
        x = self.features(pixels.to(next(self.parameters()).dtype))
        if x.ndim != 4:
            raise SpecError(f"backbone: this network gives {x.ndim - 1}-dimensional features, no map; state its stages")
        return x.permute(0, 3, 1, 2) if self.last_channels else x

    def forward(self, batch: Mapping[str, Tensor], context: Context, states: list[Tensor] | None = None) -> Tensor:
        """pixel_values (batch, channels, height, width) -> (batch, positions, dim), row by row"""
        x = self.features(batch["pixel_values"].to(next(self.parameters()).dtype))
        if x.ndim == 4:
            x = x.flatten(1, 2) if self.last_channels else x.flatten(2).transpose(1, 2)
        if states is not None:
            states.append(x)
        return x

    def flops(self, rows: int, memory: int) -> tuple[float, float]:
        """Return what an image of so many positions takes, in proportion to one of `image_size`, all as matrices."""
        from torch.utils.flop_counter import FlopCounterMode

        net = copy.deepcopy(self).to("meta").eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            x = net.features(torch.empty(1, self.channels, *self.image_size, device="meta"))
        positions = x.shape[1] if x.ndim == 3 else x.numel() // self.dim
        return counter.get_total_flops() * rows / positions, 0.0


@block("trunk/timm")
class Timm(ImageNetwork):
    """An image network of timm by its name, without its classifier. Nothing is downloaded.

    It stands where a `transformer` may: `{kind: single_tower, trunk: {kind: timm, name: fastvit_mci3}}` is a model
    whose `last_hidden_state`, and one entry of `hidden_states`, are the network's last features as tokens
    (batch, height * width, dim), row by row. So `vision_language` takes it as its `vision`, with `feature_layer: -1`
    and `drop: 0` (as many as `prefix_tokens` for a network with a class token). `trunk.maps(pixel_values)` gives the
    same as a map (batch, dim, height, width), which `detector` reads. Parameters are named `net.` and then as in timm;
    `trunk.net.**: "**"` under `hf.weights` maps them all.

    Args:
        name: of the network in timm, such as `resnet50`.
        stages: which stages are built, counted as timm's `out_indices`; what comes out is the last one's map. null for
            the whole network: timm's `forward_features`.
        channels: of the images.
        stride: pixels between positions of the last map at most, made up for by dilation; timm's `output_stride`.
        options: more arguments of the network, such as {layers: [1, 1, 1, 1]}.
        frozen_norm: batch norms keep their statistics and weights while the rest is trained, as DETR's do.
    """

    def __init__(
        self,
        *,
        name: Text,
        stages: list[int] | None = None,
        channels: Positive = 3,
        stride: Positive | None = None,
        options: dict | None = None,
        frozen_norm: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.channels = name, channels
        self.arguments: dict[str, Any] = {"in_chans": channels, **(options or {})}
        if stages is None:
            self.arguments["num_classes"] = 0
        else:
            self.arguments |= {"features_only": True, "out_indices": stages}
        if stride is not None:
            self.arguments["output_stride"] = stride
        self.net = _create(name, self.arguments)
        self.staged = stages is not None
        self.dim: int = self.net.feature_info.channels()[-1] if self.staged else self.net.num_features  # type: ignore[assignment, operator, union-attr]
        self.last_channels = str(getattr(self.net, "output_fmt", "")).endswith("NHWC")
        usual = getattr(self.net, "pretrained_cfg", {}).get("input_size", (224,))[-1]
        side = (options or {}).get("img_size", usual)
        self.image_size = (side, side) if isinstance(side, int) else tuple(side)  # type: ignore[assignment]
        self.frozen_norm = False
        if frozen_norm:
            self.freeze_norms()

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: a class token, registers."""
        return int(getattr(self.net, "num_prefix_tokens", 0))

    def freeze_norms(self) -> None:
        from timm.layers import freeze_batch_norm_2d

        self.net = freeze_batch_norm_2d(self.net)
        self.frozen_norm = True

    def reset_parameters(self) -> None:
        """Take timm's own initial values."""
        fresh = _create(self.name, self.arguments, device="cpu").state_dict()
        for name, tensor in self.net.state_dict().items():
            tensor.copy_(fresh[name])
        self.restore_buffers()

    resets_all = True
    """Its parts take no initial values of their own."""

    def restore_buffers(self) -> None:
        """Give the tables that are in no checkpoint (relative positions, rotations) their values."""
        stored = self.net.state_dict().keys()
        lost = [name for name, _ in self.net.named_buffers() if name not in stored]
        if not lost:
            return
        device = next(self.net.parameters()).device
        fresh = dict(_create(self.name, self.arguments, device="cpu").named_buffers())
        for name in lost:
            owner, _, last = name.rpartition(".")
            self.net.get_submodule(owner).register_buffer(last, fresh[name].to(device), persistent=False)

    def features(self, pixels: Tensor) -> Tensor:
        return self.net(pixels)[-1] if self.staged else self.net.forward_features(pixels)  # type: ignore[operator]


def _create(name: str, arguments: Mapping[str, Any], device: str | None = None) -> nn.Module:
    """Build a network of timm. Raises SpecError where timm is absent, or doesn't know the name or an argument."""
    try:
        import timm
    except ImportError:
        raise SpecError(f"name={name!r} is a network of timm, which is not installed; pip install timm") from None
    if not timm.is_model(name):
        near = did_you_mean(name, timm.list_models())
        raise SpecError(f"name={name!r} is no network of timm {timm.__version__}{near}; timm.list_models() lists them")
    try:
        with torch.device(device or torch.empty(0).device):
            return timm.create_model(name, pretrained=False, **arguments)
    except (TypeError, RuntimeError, AssertionError, ValueError, IndexError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        given = ", ".join(f"{k}={v}" for k, v in arguments.items())
        raise SpecError(f"name={name!r}: timm can't build it with {given}: {said}") from error
