"""Towers over a network's feature map, and over learned slots that look at it (DETR). arXiv:2005.12872"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from mlplatform.context import Context
from mlplatform.errors import DataError, SpecError
from mlplatform.registry import Fraction, Positive, PositiveFloat, Spec, block


@block("input/feature_map")
class FeatureMap(nn.Module):
    """Another network's feature map, each position projected to a vector (a 1 x 1 convolution).

    Args:
        positions: what every layer adds to queries and keys (not to values) for a position's row and column.
    """

    def __init__(
        self,
        dim: int,
        shared: nn.Module | None,
        *,
        positions: Annotated[Spec, "grid_positions"],
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        if shared is None or not hasattr(shared, "maps"):
            raise SpecError("feature_map needs a network before it that gives maps, such as a timm backbone")
        self.project = nn.Conv2d(shared.dim, dim, 1)  # type: ignore[arg-type]
        self.positions = positions.build(dim=dim)
        self.dropout = nn.Dropout(dropout)

    def size(self, batch: Mapping[str, Tensor]) -> tuple[int, torch.device]:
        """Return the number of the map's positions, and where they lie."""
        grid = batch.get("feature_map")
        if grid is None:
            raise DataError("the batch has no 'feature_map'; this tower reads what another network makes of an image")
        return grid.shape[-2] * grid.shape[-1], grid.device

    def forward(self, batch: Mapping[str, Tensor], context: Context) -> Tensor:
        """feature_map (batch, channels, rows, columns) -> (batch, rows * columns, dim).

        `feature_mask` (batch, rows, columns), when there is one, is true within each image; places count only there.
        """
        grid = batch["feature_map"]
        mask = batch.get("feature_mask")
        if mask is None:
            mask = torch.ones(1, *grid.shape[-2:], dtype=torch.bool, device=grid.device)
        context.places = self.positions(mask, grid.dtype).flatten(1, 2)
        return self.dropout(self.project(grid).flatten(2).transpose(1, 2))


@block("input/learned_slots")
class LearnedSlots(nn.Module):
    """As many empty slots as the tower's context_length, each a learned vector that queries and keys get (DETR).

    What goes through the layers starts at zero, or at the batch's `inputs_embeds`; only the vectors tell slots apart.
    """

    def __init__(self, dim: int, context_length: int) -> None:
        super().__init__()
        self.slots = nn.Embedding(context_length, dim)

    def size(self, batch: Mapping[str, Tensor]) -> tuple[int, torch.device]:
        """Return the number of slots, and where they lie."""
        return self.slots.num_embeddings, self.slots.weight.device

    def forward(self, batch: Mapping[str, Tensor], context: Context) -> Tensor:
        """Return (batch, slots, dim), as many rows as the memory has."""
        context.places = self.slots.weight[None]
        x = batch.get("inputs_embeds")
        if x is not None:
            return x
        rows = 1 if context.memory is None else len(context.memory)
        return torch.zeros_like(self.slots.weight).expand(rows, -1, -1)


@block("grid_positions/sine_2d")
class Sine2D(nn.Module):
    """Sines and cosines of the row in the first half of the features, of the column in the second. arXiv:2005.12872

    Rows and columns are counted within each image, from 1, and scaled so that its last one is at 2 pi.

    Args:
        temperature: the longest wavelength is 2 pi times this.
    """

    def __init__(self, dim: int, *, temperature: PositiveFloat = 10000.0) -> None:
        super().__init__()
        if dim % 4:
            raise SpecError(f"dim={dim}: sine_2d needs a multiple of 4, a sine and a cosine for rows and for columns")
        self.width, self.temperature = dim // 2, temperature

    def forward(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """mask (batch, rows, columns), true within the image -> (batch, rows, columns, dim)"""
        inside = mask.to(dtype)
        return torch.cat([self._waves(inside.cumsum(axis), axis) for axis in (1, 2)], -1)

    def _waves(self, number: Tensor, axis: int) -> Tensor:
        last = number.select(axis, -1).unsqueeze(axis)
        angle = number / (last + 1e-6) * (2 * math.pi)
        pair = torch.arange(self.width, device=number.device).div(2, rounding_mode="floor").to(number.dtype)
        angle = angle[..., None] / self.temperature ** (2 * pair / self.width)
        return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2)


@block("grid_positions/learned_2d")
class Learned2D(nn.Module):
    """A learned vector for each column in the first half of the features, for each row in the second.

    Args:
        size: rows and columns there are vectors for.
    """

    def __init__(self, dim: int, *, size: Positive = 50) -> None:
        super().__init__()
        if dim % 2:
            raise SpecError(f"dim={dim}: learned_2d needs an even number, a half for columns and one for rows")
        self.rows = nn.Embedding(size, dim // 2)
        self.columns = nn.Embedding(size, dim // 2)

    def forward(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """mask (batch, rows, columns) -> (1, rows, columns, dim); padding changes nothing"""
        rows, columns = mask.shape[-2:]
        if max(rows, columns) > self.rows.num_embeddings:
            raise DataError(f"the map is {rows}x{columns}; learned_2d has size={self.rows.num_embeddings}")
        across = self.columns.weight[:columns].expand(rows, -1, -1)
        down = self.rows.weight[:rows, None].expand(-1, columns, -1)
        return torch.cat((across, down), -1)[None]
