"""Sound as a sequence of frames: a spectrogram, or the waveform itself, through convolutions over time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.blocks.activations import ACTIVATIONS
from mlplatform.context import Context
from mlplatform.errors import DataError, SpecError
from mlplatform.registry import Activation, Fraction, Natural, Positive, Spec, block


@block("input/spectrogram")
class Spectrogram(nn.Module):
    """Frames of a spectrogram through convolutions of three frames, GELU after each, then positions. arXiv:2212.04356

    The recording is as long as `context_length` says: silence is no padding, so an attention_mask hides none of it.

    Args:
        bins: numbers of a frame; HF's `num_mel_bins`.
        strides: of the convolutions, one each; their product is how many frames become one position.
        masking: what is hidden from the model in training.
    """

    reads = "input_features"

    convs: Any

    def __init__(
        self,
        dim: int,
        context_length: int,
        *,
        bins: Positive,
        strides: list[Positive],
        positions: Annotated[Spec, "positions"],
        masking: Annotated[Spec, "masking"] | None = None,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.bins, self.length, self.frames = bins, context_length, context_length
        for stride in strides:
            self.frames *= stride
        widths = [bins, *[dim] * len(strides)]
        self.convs = nn.ModuleList(
            nn.Conv1d(before, after, 3, stride, padding=1)
            for (before, after), stride in zip(pairwise(widths), strides, strict=True)
        )
        self.positions = positions.build(dim=dim, context_length=context_length)
        self.masking = masking.build(dim=bins) if masking else None
        self.dropout = nn.Dropout(dropout)

    def size(self, batch: Mapping[str, Tensor]) -> tuple[int, torch.device]:
        """Return the number of positions these frames take, and where they lie."""
        features = batch.get("input_features")
        if features is None:
            raise DataError("the batch has no 'input_features'; this model reads spectrograms")
        if features.shape[1:] != (self.bins, self.frames):
            given = " x ".join(str(n) for n in features.shape[1:])
            raise DataError(
                f"input_features holds {given} numbers a recording; it is {self.bins} x {self.frames} (bins x frames): "
                "pad or cut the recordings, as the processor does"
            )
        return self.length, features.device

    def forward(self, batch: Mapping[str, Tensor], context: Context) -> Tensor:
        """input_features (batch, bins, frames) -> (batch, length, dim)"""
        x = batch["input_features"].to(self.convs[0].weight.dtype)
        if self.masking is not None:
            x = self.masking(x.transpose(1, 2), context.padding).transpose(1, 2)
        context.padding = None
        for conv in self.convs:
            x = F.gelu(conv(x))
        return self.dropout(self.positions(x.transpose(1, 2), context))

    def flops(self, rows: int, memory: int) -> tuple[float, float]:
        """Return the FLOPs of its convolutions, each of which gives as many frames as the next one's stride asks."""
        total = 0.0
        for conv in reversed(self.convs):
            total += 2.0 * rows * conv.weight.numel()
            rows *= conv.stride[0]
        return total, 0.0


@block("input/waveform")
class Waveform(nn.Module):
    """Samples through a front end to frames, normed and projected, then positions (wav2vec 2.0). arXiv:2006.11477

    Padding comes after a recording. Its frames are made zero before the positions, and no attention sees them.

    Args:
        front: what makes frames of samples.
        front_norm: the tower's norm over what the front end gives; HF's `feat_proj_layer_norm`.
        front_dropout: after the projection; HF's `feat_proj_dropout`.
        masking: what is hidden from the model, after the projection.
        norm: the tower's norm after the positions.
    """

    reads = "input_values"

    def __init__(
        self,
        dim: int,
        tower_norm: Spec,
        context_length: int,
        *,
        front: Annotated[Spec, "front"],
        positions: Annotated[Spec, "positions"],
        masking: Annotated[Spec, "masking"] | None = None,
        front_norm: bool = True,
        front_dropout: Fraction = 0.0,
        norm: bool = False,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        self.front = front.build()
        self.feature_dim = self.front.width
        self.front_norm = tower_norm.build(dim=self.front.width) if front_norm else None
        self.project = nn.Linear(self.front.width, dim)
        self.front_dropout = nn.Dropout(front_dropout)
        self.masking = masking.build(dim=dim) if masking else None
        self.positions = positions.build(dim=dim, context_length=context_length)
        self.norm = tower_norm.build(dim=dim) if norm else None
        self.dropout = nn.Dropout(dropout)

    def size(self, batch: Mapping[str, Tensor]) -> tuple[int, torch.device]:
        """Return the number of frames these samples become, and where they lie."""
        samples, mask = batch.get("input_values"), batch.get("attention_mask")
        if samples is None:
            raise DataError("the batch has no 'input_values'; this model reads waveforms")
        if samples.ndim != 2:
            raise DataError(f"input_values has {samples.ndim} dimensions; it is (batch, samples), one channel")
        if samples.shape[1] < (least := self.front.samples(1)):
            raise DataError(f"recordings of {samples.shape[1]} samples are too short; a frame takes {least}")
        if mask is not None and mask.shape != samples.shape:
            raise DataError(
                f"attention_mask is {list(mask.shape)}, input_values {list(samples.shape)}; it tells for every sample "
                "whether it is no padding"
            )
        return self.front.frames(samples.shape[1]), samples.device

    def forward(self, batch: Mapping[str, Tensor], context: Context) -> Tensor:
        """input_values (batch, samples) -> (batch, frames, dim)

        `context.padding` comes telling samples and leaves telling frames; `context.features` are the normed frames
        before the projection.
        """
        features = self.front(batch["input_values"])
        if self.front_norm is not None:
            features = self.front_norm(features)
        context.features = features
        x = self.front_dropout(self.project(features))
        if context.padding is not None:
            real = self.front.frames(context.padding.sum(-1))
            context.padding = torch.arange(x.shape[1], device=x.device) < real[:, None]
        hidden = batch.get("mask_time_indices")
        context.hidden = None if hidden is None else hidden.bool()
        if self.masking is not None:
            x = self.masking(x, context.padding, context.hidden)
        elif hidden is not None:
            raise DataError("the batch has 'mask_time_indices', but this model's input has no masking")
        if context.padding is not None:
            x = x.masked_fill(~context.padding[..., None], 0.0)
        x = self.positions(x, context)
        if self.norm is not None:
            x = self.norm(x)
        return self.dropout(x)


@block("front/convolutions")
class Convolutions(nn.Module):
    """Samples through convolutions without padding, a norm, and an activation after each. arXiv:2006.11477

    Args:
        channels, kernels, strides: of the convolutions, in order; HF's `conv_dim`, `conv_kernel`, `conv_stride`.
        norm: `first` norms each channel of the first convolution over the whole recording, its padding included
            (wav2vec 2.0 base); `each` norms each frame over its channels, after every convolution (large).
    """

    convs: Any

    def __init__(
        self,
        *,
        channels: list[Positive],
        kernels: list[Positive],
        strides: list[Positive],
        norm: Literal["first", "each"] = "first",
        activation: Activation = "gelu",
        bias: bool = False,
    ) -> None:
        super().__init__()
        if not len(channels) == len(kernels) == len(strides) > 0:
            raise SpecError(
                f"there are {len(channels)} channels, {len(kernels)} kernels and {len(strides)} strides; "
                "each convolution has one of each"
            )
        self.width = channels[-1]
        self.each = norm == "each"
        self.convs = nn.ModuleList(
            nn.Conv1d(before, after, kernel, stride, bias=bias)
            for before, after, kernel, stride in zip([1, *channels], channels, kernels, strides, strict=False)
        )
        first = nn.GroupNorm(channels[0], channels[0])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for width in channels] if self.each else [first])
        self.activation = ACTIVATIONS[activation]

    def frames(self, samples: Any) -> Any:
        """Return how many frames so many samples become, a number or a tensor of them."""
        for conv in self.convs:
            samples = (samples - conv.kernel_size[0]) // conv.stride[0] + 1
        return samples

    def samples(self, frames: int) -> int:
        """Return how many samples so many frames need at least."""
        for conv in reversed(self.convs):
            frames = (frames - 1) * conv.stride[0] + conv.kernel_size[0]
        return frames

    def forward(self, samples: Tensor) -> Tensor:
        """(batch, samples) -> (batch, frames, width)"""
        x = samples[:, None].to(self.convs[0].weight.dtype)
        for number, conv in enumerate(self.convs):
            x = conv(x)
            if self.each:
                x = self.norms[number](x.transpose(1, 2)).transpose(1, 2)
            elif number == 0:
                x = self.norms[0](x)
            x = self.activation(x)
        return x.transpose(1, 2)

    def flops(self, rows: int, memory: int) -> tuple[float, float]:
        """Return the FLOPs of its convolutions over the fewest samples that become so many frames."""
        total = 0.0
        for conv in reversed(self.convs):
            total += 2.0 * rows * conv.weight.numel()
            rows = (rows - 1) * conv.stride[0] + conv.kernel_size[0]
        return total, 0.0


@block("positions/convolution")
class ConvolutionPositions(nn.Module):
    """x + activation(conv(x)): where a frame is shows in the frames around it (wav2vec 2.0). arXiv:1904.11660

    Args:
        kernel: frames it sees, the odd one before the frame; HF's `num_conv_pos_embeddings`.
        groups: of the convolution; HF's `num_conv_pos_embedding_groups`.
        norm: `weight` learns direction and length of what each place of the kernel weighs (arXiv:1602.07868); `batch`
            norms what the convolution reads by the statistics of the batch (HuBERT's `conv_pos_batch_norm`).
    """

    def __init__(
        self,
        dim: int,
        context_length: int,
        *,
        kernel: Positive,
        groups: Positive = 1,
        norm: Literal["weight", "batch"] = "weight",
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        if dim % groups:
            raise SpecError(f"dim={dim} is not a multiple of groups={groups}")
        self.kernel, self.groups = kernel, groups
        shape = (dim, dim // groups, kernel)
        weighed = norm == "weight"
        self.weight = None if weighed else nn.Parameter(torch.empty(shape))
        self.direction = nn.Parameter(torch.empty(shape)) if weighed else None
        self.length = nn.Parameter(torch.empty(1, 1, kernel)) if weighed else None
        self.bias = nn.Parameter(torch.empty(dim))
        self.batch_norm = None if weighed else nn.BatchNorm1d(dim)
        self.activation = ACTIVATIONS[activation]

    def reset_parameters(self) -> None:
        nn.init.normal_(self._kernel, std=2 * (self.kernel * len(self.bias)) ** -0.5)
        nn.init.zeros_(self.bias)
        if self.length is not None:
            with torch.no_grad():
                self.length.copy_(_lengths(self._kernel))

    @property
    def _kernel(self) -> Tensor:
        """The parameter with a number for each place: the direction, where its length is learned apart."""
        kernel = self.weight if self.direction is None else self.direction
        assert kernel is not None
        return kernel

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(batch, frames, dim) -> (batch, frames, dim)"""
        y, kernel = x.transpose(1, 2), self._kernel
        if self.batch_norm is not None:
            y = self.batch_norm(y)
        if self.length is not None:
            kernel = kernel * (self.length / _lengths(kernel))
        y = F.conv1d(F.pad(y, (self.kernel // 2, (self.kernel - 1) // 2)), kernel, self.bias, groups=self.groups)
        return x + self.activation(y).transpose(1, 2)

    def flops(self, rows: int, memory: int) -> tuple[float, float]:
        """Return the FLOPs of its convolution."""
        return 2.0 * rows * self._kernel.numel(), 0.0


def _lengths(weight: Tensor) -> Tensor:
    """Return the length of what each place of a kernel weighs: (1, 1, kernel)."""
    return torch.linalg.vector_norm(weight, dim=(0, 1), keepdim=True)


@block("masking/spans")
class Spans(nn.Module):
    """Hides spans of frames, and of features, in training (SpecAugment). arXiv:1904.08779

    Args:
        frames: share of the frames that spans would hide if none met another; HF's `mask_time_prob`.
        frames_length: frames a span hides. frames_least: spans a recording has at least.
        features, features_length, features_least: the same for the features of all frames, which become zero.
        learned: hidden frames become one learned vector (wav2vec 2.0) instead of zero; it is there where frames or
            features may be hidden, as in HF.
        active: HF's `apply_spec_augment`; false hides nothing, whatever the other numbers are.
    """

    def __init__(
        self,
        dim: int,
        *,
        frames: Fraction = 0.05,
        frames_length: Positive = 10,
        frames_least: Natural = 2,
        features: Fraction = 0.0,
        features_length: Positive = 10,
        features_least: Natural = 0,
        learned: bool = False,
        active: bool = True,
    ) -> None:
        super().__init__()
        self.frames, self.features, self.active = frames, features, active
        self.frame_spans = (frames_length, frames_least)
        self.feature_spans = (features_length, features_least)
        self.vector = nn.Parameter(torch.empty(dim)) if learned and (frames or features) else None

    def reset_parameters(self) -> None:
        if self.vector is not None:
            nn.init.uniform_(self.vector)

    def forward(self, x: Tensor, padding: Tensor | None, given: Tensor | None = None) -> Tensor:
        """Hide frames of x (batch, frames, features): those `given` says (batch, frames), or random ones in training.

        Args:
            padding: which frames are real (batch, frames); spans lie in them.
        """
        if not self.active:
            return x
        if given is None and self.training and self.frames:
            real = x.new_full((len(x),), x.shape[1]) if padding is None else padding.sum(-1)
            given = spans(real.long().tolist(), x.shape[1], self.frames, *self.frame_spans).to(x.device)
        if given is not None:
            if given.shape != x.shape[:2]:
                raise DataError(
                    f"mask_time_indices is {list(given.shape)}; these recordings have {list(x.shape[:2])} frames"
                )
            vector = torch.zeros((), device=x.device) if self.vector is None else self.vector
            x = torch.where(given[..., None], vector.to(x.dtype), x)
        if self.training and self.features:
            dim = x.shape[2]
            given = spans([dim] * len(x), dim, self.features, *self.feature_spans).to(x.device)
            x = x.masked_fill(given[:, None], 0.0)
        return x


def spans(real: list[int], places: int, share: float, length: int, least: int) -> Tensor:
    """Return which of (rows, places) random spans cover: about `share` of the first `real` places of each row.

    The number of spans is share * places / length, rounded up or down at random, alike for all rows; `least` at
    least, and as many as fit. Spans of a row start at different places, and may overlap.
    """
    covered = torch.zeros(len(real), places, dtype=torch.bool)
    luck = torch.rand(()).item()
    for row, end in enumerate(real):
        starts = max(end - length + 1, 0)
        number = min(max(int(share * end / length + luck), least), places // length, starts)
        for start in torch.randperm(starts)[:number].tolist():
            covered[row, start : start + length] = True
    return covered
