"""Pixel values drawn as a person sees them: back in colours, large enough, with boxes and their names."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE = 256
"""Pixels the shorter side of a picture has at least: small images are drawn larger."""

Boxes = Sequence[tuple[str, Sequence[float]]]
"""The name of each object, and its box by centre x, centre y, width and height as shares of the image."""


def picture(pixels: NDArray[np.floating[Any]], settings: Any, boxes: Boxes = ()) -> Image.Image:
    """Return pixel values (channels, height, width) as a picture, with boxes drawn on it.

    Args:
        settings: of the processor that made them (`ImageProcessor.settings`), which are undone; None where they are not
            known: the least value becomes black then, the greatest white.
    """
    image = Image.fromarray(_bytes(pixels, settings).squeeze(-1) if len(pixels) == 1 else _bytes(pixels, settings))
    times = -(-SIDE // min(image.size))
    image = image.convert("RGB").resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    names = sorted({name for name, _ in boxes})
    draw = ImageDraw.Draw(image)
    for name, (x, y, width, height) in boxes:
        colour = _colour(names.index(name), len(names))
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        left, top, right, bottom = (round(s * side) for s, side in zip(corners, image.size * 2, strict=True))
        draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=2)
        place = draw.textbbox((left + 4, top + 2), name)
        draw.rectangle((left, top, place[2] + 3, place[3] + 2), fill=colour)
        draw.text((left + 4, top + 2), name, fill="black")
    return image


def _bytes(pixels: NDArray[np.floating[Any]], settings: Any) -> NDArray[np.uint8]:
    values = pixels.astype(np.float64)
    if settings is None:
        values = (values - values.min()) / max(float(np.ptp(values)), 1e-12) * 255
    else:
        if settings.mean is not None:
            mean, std = (np.asarray(part, np.float64)[:, None, None] for part in (settings.mean, settings.std))
            values = values * std + mean
        values = values / (settings.factor or 1.0)
    return np.moveaxis(values.round().clip(0, 255).astype(np.uint8), 0, -1)


def _colour(number: int, count: int) -> tuple[int, int, int]:
    """Return one of so many light colours, as far apart as can be."""
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(number / max(count, 1), 0.6, 1.0))
    return red, green, blue
