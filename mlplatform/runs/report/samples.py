"""What a run wrote, saw and heard: texts of its samples, and predictions beside their pictures and sound."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mlplatform.data.fields import is_file

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}
SOUNDS = {".wav": "audio/wav", ".flac": "audio/flac", ".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".m4a": "audio/mp4"}
PREDICTIONS, LETTERS = 12, 3000
SIDE = 256
"""Pixels of a picture's longer side on the page."""
QUALITY = 80


@dataclass
class Budget:
    """How many bytes of pictures and sound a page may still take in."""

    left: int = 160_000
    refused: int = 0

    def take(self, data: bytes, kind: str) -> str | None:
        """Return the data as an address of the page itself; None when it is too large."""
        text = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        if len(text) > self.left:
            self.refused += 1
            return None
        self.left -= len(text)
        return text


@dataclass
class Shown:
    """One prediction: its fields as texts, and at most one picture with boxes (in per cent) or one sound."""

    number: int
    given: dict[str, str]
    predicted: dict[str, str]
    picture: str | None = None
    boxes: list[dict[str, Any]] = field(default_factory=list)
    sound: str | None = None


def texts(folder: Path) -> list[tuple[str, str]]:
    """Return (name, text) of a run's samples, newest first, at most three."""
    files = sorted((folder / "samples").glob("*.txt"), reverse=True)[:3]
    return [(file.stem, file.read_text(encoding="utf-8", errors="replace").strip("\n")[:LETTERS]) for file in files]


def evaluations(folder: Path, budget: Budget) -> list[dict[str, Any]]:
    """Return a run's evaluations: name, what was measured on, metrics, and the first predictions."""
    found = []
    for part in sorted((folder / "evaluations").glob("*/metrics.json")):
        try:
            told = json.loads(part.read_text(encoding="utf-8"))
            metrics = dict(told["metrics"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        shown = [_shown(line, part.parent, budget) for line in _lines(part.parent / "predictions.jsonl")]
        about = {"name": part.parent.name, "split": told.get("split"), "changes": told.get("changes") or {}}
        found.append({**about, "metrics": metrics, "shown": shown})
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            found = [json.loads(line) for line in islice(file, PREDICTIONS)]
    except (OSError, ValueError):
        return []
    return [line for line in found if isinstance(line, dict) and isinstance(line.get("prediction"), dict)]


def _shown(line: dict[str, Any], folder: Path, budget: Budget) -> Shown:
    """Return a line of a folder's predictions.jsonl for the page. Text stays text: nothing is marked as safe."""
    given = {name: value for name, value in line.items() if name not in ("number", "place", "prediction")}
    predicted = dict(line["prediction"])
    shown = Shown(int(line.get("number", 0)), {}, {})
    for name, value in given.items():
        file = folder / value if isinstance(value, str) and is_file(folder / value) else Path()
        suffix = file.suffix.lower()
        if suffix in PICTURES:
            shown.picture, size = picture(file, budget)
            shown.boxes = [
                *boxes(given.get("objects"), size, "true"),
                *boxes(predicted.get("objects"), size, "found"),
            ]
        elif suffix in SOUNDS:
            shown.sound = budget.take(file.read_bytes(), SOUNDS[suffix])
        elif name != "objects":
            shown.given[name] = text(value)
    shown.predicted = {name: text(value) or "(nothing)" for name, value in predicted.items() if name != "objects"}
    return shown


def picture(path: Path, budget: Budget) -> tuple[str | None, tuple[int, int]]:
    """Return (a picture made small, as an address of the page itself, or None; its width and height as it lies there).

    Pixels too few to see are drawn as squares.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            size, small = image.size, image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None, (1, 1)
    written, few = io.BytesIO(), max(size) <= 64
    if few:
        small.save(written, "PNG")
    else:
        small.thumbnail((SIDE, SIDE))
        small.save(written, "WEBP", quality=QUALITY)
    return budget.take(written.getvalue(), "image/png" if few else "image/webp"), size


def boxes(objects: Any, size: tuple[int, int], kind: str) -> list[dict[str, Any]]:
    """Return the boxes of COCO's objects, `bbox` as left, top, width, height in pixels, in per cent of the picture."""
    found = []
    for one in objects if isinstance(objects, list) else []:
        try:
            left, top, width, height = (float(side) for side in one["bbox"])
        except (KeyError, TypeError, ValueError):
            continue
        score = f" {one['score']:.2f}" if isinstance(one.get("score"), float) else ""
        places = zip(("x", "y", "width", "height"), (left, top, width, height), size * 2, strict=True)
        share = {name: round(100 * place / side, 2) for name, place, side in places}
        found.append({**share, "kind": kind, "label": f"{one.get('category', '')}{score}"})
    return found


def text(value: Any) -> str:
    """Return a value as a short text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    said = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return said if len(said) <= 600 else f"{said[:600]} ..."
