"""The steps an image goes through on its way to a model, each on an array (channels, height, width).

Numbers are those of Pillow and of 32-bit sums, as in the processors of transformers that Pillow computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlplatform.errors import DataError

Pixels = NDArray[np.generic]
Size = Mapping[str, int]


def resized_to(height: int, width: int, size: Size) -> tuple[int, int]:
    """Return the (height, width) an image becomes.

    Args:
        size: {height, width} exactly that; {shortest_edge} keeps the shape; {shortest_edge, longest_edge} too, the
            shortest edge made smaller where the longest would be too long; {max_height, max_width} the largest that
            fits in.
    """
    if "height" in size:
        return size["height"], size["width"]
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return int(height * scale), int(width * scale)
    short, long = min(height, width), max(height, width)
    wanted = exact = float(size["shortest_edge"])
    if "longest_edge" in size and long / short * wanted > size["longest_edge"]:
        exact = size["longest_edge"] * short / long
        wanted = float(round(exact))
    longer = long if "longest_edge" in size and short == wanted else int(exact * long / short)
    return (int(wanted), longer) if height <= width else (longer, int(wanted))


def resize(image: Pixels, height: int, width: int, resample: int) -> Pixels:
    """Resize by Pillow's filter of that number. Raises DataError for a shape that would lose an edge."""
    if height < 1 or width < 1:
        raise DataError(
            f"an image of {image.shape[1]}x{image.shape[2]} (height x width) would become {height}x{width}; drop it"
        )
    pixels = Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1))
    made = np.asarray(pixels.resize((width, height), resample=resample))
    return made[None] if made.ndim == 2 else np.moveaxis(made, -1, 0)


def center_crop(image: Pixels, height: int, width: int) -> Pixels:
    """Cut out the middle; where the image is smaller, zeros stand around it, the odd row or column before it."""
    channels, old_height, old_width = image.shape
    cut = np.zeros((channels, height, width), image.dtype)
    rows, own_rows = _middle(old_height, height)
    columns, own_columns = _middle(old_width, width)
    cut[:, rows, columns] = image[:, own_rows, own_columns]
    return cut


def _middle(old: int, new: int) -> tuple[slice, slice]:
    """Return where of the new length the old one lies, and which part of the old one that is."""
    if old >= new:
        start = (old - new) // 2
        return slice(0, new), slice(start, start + new)
    start = (new - old + 1) // 2
    return slice(start, start + old), slice(0, old)


def pad_to_square(image: Pixels, colour: Sequence[int]) -> Pixels:
    """Put the image in the middle of a square of one colour, as wide as its longest edge (LLaVA)."""
    channels, height, width = image.shape
    side = max(height, width)
    square = np.empty((channels, side, side), image.dtype)
    square[:] = np.asarray(colour, image.dtype)[:, None, None]
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = image
    return square


def pad(image: Pixels, height: int, width: int) -> Pixels:
    """Put zeros below and to the right. Raises DataError when the image is larger."""
    if image.shape[1] > height or image.shape[2] > width:
        raise DataError(f"an image of {image.shape[1]}x{image.shape[2]} is larger than pad_size, {height}x{width}")
    return np.pad(image, ((0, 0), (0, height - image.shape[1]), (0, width - image.shape[2])))


def rescale(image: Pixels, factor: float) -> NDArray[np.float32]:
    """Multiply in 64 bits, return 32."""
    return (image.astype(np.float64) * factor).astype(np.float32)


def normalise(image: Pixels, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Return (image - mean) / std, by channel, in 32 bits."""
    middle, spread = (np.asarray(values, np.float32)[:, None, None] for values in (mean, std))
    return (image.astype(np.float32) - middle) / spread
