"""An image as a sequence of patches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.context import Context
from mlplatform.errors import DataError, SpecError
from mlplatform.registry import Fraction, Natural, Positive, Spec, block


@block("input/patches")
class Patches(nn.Module):
    """Square patches by one convolution, special tokens before them, a learned table of positions. arXiv:2010.11929

    Images of another size are taken with `interpolate_pos_encoding=True`: the table is resized to their grid.

    Args:
        image_size: side in pixels of the square images the position table is made for.
        patch: side of a patch in pixels; the stride too.
        bias: of the convolution.
        special: tokens before the patches: 1 for the class token, more for registers.
        norm: the tower's norm after the sum (CLIP's `pre_layrnorm`).
        mask_token: a learned vector for patches that `bool_masked_pos` marks.
    """

    reads = "pixel_values"

    def __init__(
        self,
        dim: int,
        tower_norm: Spec,
        *,
        image_size: Positive,
        patch: Positive,
        channels: Positive = 3,
        bias: bool = True,
        special: Natural = 1,
        norm: bool = False,
        mask_token: bool = False,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        if image_size < patch:
            raise SpecError(f"image_size={image_size} is smaller than patch={patch}")
        self.image_size, self.patch_size, self.channels = image_size, patch, channels
        self.patch = nn.Conv2d(channels, dim, patch, patch, bias=bias)
        self.special = nn.Parameter(torch.zeros(special, dim)) if special else None
        self.mask_token = nn.Parameter(torch.zeros(dim)) if mask_token else None
        self.positions = nn.Embedding((image_size // patch) ** 2 + special, dim)
        self.norm = tower_norm.build(dim=dim) if norm else None
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        for parameter in (self.special, self.mask_token):
            if parameter is not None:
                nn.init.zeros_(parameter)

    def size(self, batch: Mapping[str, Tensor]) -> tuple[int, torch.device]:
        """Return the number of positions these images take, and where they lie."""
        pixels = batch.get("pixel_values")
        if pixels is None:
            raise DataError("the batch has no 'pixel_values'; this model reads images")
        if pixels.ndim != 4:
            raise DataError(f"pixel_values has {pixels.ndim} dimensions; it is (batch, channels, height, width)")
        if pixels.shape[1] != self.channels:
            raise DataError(f"pixel_values has {pixels.shape[1]} channels; this model reads {self.channels}")
        special = 0 if self.special is None else len(self.special)
        return (pixels.shape[-2] // self.patch_size) * (pixels.shape[-1] // self.patch_size) + special, pixels.device

    def forward(self, batch: Mapping[str, Tensor], context: Context) -> Tensor:
        """pixel_values (batch, channels, height, width) -> (batch, special + patches, dim), rows of patches in order"""
        pixels = batch["pixel_values"]
        grid = self.patch(pixels.to(self.patch.weight.dtype))
        x = grid.flatten(2).transpose(1, 2)
        if batch.get("bool_masked_pos") is not None:
            if self.mask_token is None:
                raise DataError("the batch has 'bool_masked_pos', but this model has no mask_token")
            x = torch.where(batch["bool_masked_pos"][..., None].bool(), self.mask_token, x)
        if self.special is not None:
            x = torch.cat((self.special.expand(len(x), -1, -1), x), 1)
        if not batch.get("interpolate_pos_encoding"):
            self._check_size(pixels.shape[-2], pixels.shape[-1])
        x = x + self._positions(grid.shape[-2], grid.shape[-1])
        if self.norm is not None:
            x = self.norm(x)
        return self.dropout(x)

    def _check_size(self, height: int, width: int) -> None:
        if (height, width) != (self.image_size, self.image_size):
            raise DataError(
                f"images are {height}x{width} pixels, the model takes {self.image_size}x{self.image_size}; "
                "resize them or pass interpolate_pos_encoding=True"
            )

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the table (special + patches, dim), resized when the grid isn't the one it was made for."""
        table, side = self.positions.weight, self.image_size // self.patch_size
        if rows == columns == side:
            return table
        special = len(table) - side * side
        old = table[special:].unflatten(0, (side, side)).permute(2, 0, 1)[None]
        new = F.interpolate(old, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat((table[:special], new[0].flatten(1).t()))
