"""Residual networks of any widths and depths; timm's have a stem of 64 channels. arXiv:1512.03385"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.blocks.activations import ACTIVATIONS
from mlplatform.blocks.backbones import ImageNetwork
from mlplatform.errors import SpecError
from mlplatform.registry import Activation, Positive, block

EPS = 1e-5


class FrozenBatchNorm(nn.Module):
    """A batch norm whose statistics and weights are given once: nothing of it is trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.empty(width))

    def reset_parameters(self) -> None:
        for name, buffer in self.named_buffers():
            buffer.fill_(1.0 if name in ("weight", "running_var") else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, rows, columns) -> the same"""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=EPS)  # type: ignore[arg-type]


class NormedConv(nn.Module):
    """A convolution that keeps the size (or a whole fraction of it), and a batch norm."""

    def __init__(self, width: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, stride, padding=kernel // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(out, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, rows, columns) -> (batch, out, rows / stride, columns / stride)"""
        return self.norm(self.conv(x))


class Residual(nn.Module):
    """activation(shortcut(x) + convolutions(x)), relu between the convolutions."""

    def __init__(self, convs: list[NormedConv], shortcut: NormedConv | None, activation: Activation) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.shortcut = shortcut
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width, rows, columns) -> (batch, out, rows / stride, columns / stride)"""
        y = x
        for number, conv in enumerate(self.convs):
            y = conv(y if number == 0 else F.relu(y))
        return self.activation(y + (x if self.shortcut is None else self.shortcut(x)))


@block("trunk/resnet")
class ResNet(ImageNetwork):
    """Stages of residual blocks, each of half the size of the one before it. It stands where `timm` may.

    Args:
        widths, depths: of the stages: channels and blocks; HF's `hidden_sizes`, `depths`.
        stem: channels of the first convolution; HF's `embedding_size`.
        bottleneck: blocks of a narrow convolution of 3 x 3 between two of 1 x 1; false for two of 3 x 3.
        activation: after the stem and after each sum, as HF's `hidden_act`; between a block's convolutions it is relu.
        stages: what comes out is the map after the last of these, counted from 1 (0: the stem); HF's `out_indices`.
        halve_first: the first stage halves the size too; HF's `downsample_in_first_stage`.
        halve_early: a bottleneck's first convolution halves the size, not the second; HF's `downsample_in_bottleneck`.
    """

    def __init__(
        self,
        *,
        widths: list[int],
        depths: list[int],
        stem: Positive = 64,
        channels: Positive = 3,
        bottleneck: bool = True,
        activation: Activation = "relu",
        stages: list[int] | None = None,
        halve_first: bool = False,
        halve_early: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths) or min([0, *widths, *depths]) < 0 or 0 in (*widths, *depths) or not widths:
            raise SpecError(f"widths={widths} and depths={depths}: one of each for every stage is needed, from 1")
        self.channels, self.activation = channels, ACTIVATIONS[activation]
        last = stages[-1] if stages else len(widths)
        self.last = last if last >= 0 else last + len(widths) + 1
        if not 0 <= self.last <= len(widths):
            raise SpecError(f"stages={stages}: there are the stages 1 to {len(widths)}, and 0 for the stem")
        self.dim = [stem, *widths][self.last]
        self.stem = NormedConv(channels, stem, 7, 2)

        def residual(before: int, out: int, stride: int) -> Residual:
            shortcut = NormedConv(before, out, 1, stride) if before != out or stride > 1 else None
            if not bottleneck:
                return Residual([NormedConv(before, out, 3, stride), NormedConv(out, out, 3)], shortcut, activation)
            strides, inner = (stride, 1) if halve_early else (1, stride), out // 4
            first, second = NormedConv(before, inner, 1, strides[0]), NormedConv(inner, inner, 3, strides[1])
            return Residual([first, second, NormedConv(inner, out, 1)], shortcut, activation)

        self.residuals = nn.ModuleList()
        before = stem
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            stride = 2 if number or halve_first else 1
            rest = [residual(width, width, 1) for _ in range(depth - 1)]
            self.residuals.append(nn.ModuleList([residual(before, width, stride), *rest]))
            before = width

    def freeze_norms(self) -> None:
        for module in self.modules():
            if isinstance(module, NormedConv):
                module.norm = FrozenBatchNorm(module.conv.out_channels)

    def features(self, pixels: Tensor) -> Tensor:
        x = F.max_pool2d(self.activation(self.stem(pixels)), 3, 2, 1)
        for stage in self.residuals[: self.last]:
            for layer in stage:  # type: ignore[attr-defined]
                x = layer(x)
        return x
