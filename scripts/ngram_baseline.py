"""What byte n-gram models reach on a run's own held-out text, in bits per byte: the bar for a trained model.

    python scripts/ngram_baseline.py [RUN_FOLDER | CONFIG.yaml]

Without an argument: the default text, conf/data/shakespeare.yaml. The models are trained on all of the train split and
score every byte of the validation split; each document is preceded by zero bytes, so its first bytes count as well.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from mlplatform import places
from mlplatform.data.sources import Source
from mlplatform.errors import DataError, PlatformError
from mlplatform.registry import Spec

ORDERS = (0, 3, 5)
Codes = NDArray[np.uint64]


class Level(NamedTuple):
    """Counts of one order: how often each (context, byte) and each context came, and how many bytes followed it."""

    grams: Codes
    gram_counts: NDArray[np.int64]
    contexts: Codes
    context_counts: NDArray[np.int64]
    followers: NDArray[np.int64]


def codes(documents: Iterable[bytes], order: int) -> Codes:
    """Return for each byte of the documents the number made of the `order` bytes before it and itself."""
    padded = b"".join(b"\0" * order + document for document in documents)
    data = np.frombuffer(padded, dtype=np.uint8)
    found = np.zeros(len(data), dtype=np.uint64)
    for back in range(order + 1):
        found[back:] |= data[: len(data) - back].astype(np.uint64) << np.uint64(8 * back)
    return found[data > 0]  # no text holds a zero byte


def count(documents: list[bytes], order: int) -> Level:
    """Count the n-grams of one order."""
    grams, gram_counts = np.unique(codes(documents, order), return_counts=True)
    contexts, first, followers = np.unique(grams >> np.uint64(8), return_index=True, return_counts=True)
    return Level(grams, gram_counts, contexts, np.add.reduceat(gram_counts, first), followers)


def probabilities(levels: list[Level], documents: list[bytes]) -> NDArray[np.float64]:
    """Return the probability of each byte, by Witten-Bell interpolation of all orders up to the highest.

    p_k(b | c) = (n(c b) + t(c) p_{k-1}(b | c')) / (n(c) + t(c)), with t(c) the number of different bytes seen after c
    and p_{-1} = 1/256 (Witten and Bell 1991, doi:10.1109/18.87000).
    """
    found = np.float64(1 / 256)
    for order, level in enumerate(levels):
        wanted = codes(documents, order)
        n = look_up(level.grams, level.gram_counts, wanted)
        total = look_up(level.contexts, level.context_counts, wanted >> np.uint64(8))
        followers = look_up(level.contexts, level.followers, wanted >> np.uint64(8))
        seen = total > 0
        mixed = (n + followers * found) / np.maximum(total + followers, 1)
        found = np.where(seen, mixed, found)
    return np.asarray(found)


def look_up(keys: Codes, values: NDArray[np.int64], wanted: Codes) -> NDArray[np.int64]:
    """Return the value of each wanted key, 0 where there is none; `keys` are sorted."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def bits_per_byte(train: list[bytes], validation: list[bytes], orders: Iterable[int]) -> dict[int, float]:
    """Return bits per byte of the validation documents for each order."""
    levels = [count(train, order) for order in range(max(orders) + 1)]
    return {k: float(-np.log2(probabilities(levels[: k + 1], validation)).mean()) for k in orders}


def source_of(path: Path) -> Source:
    """Build the data source a run folder, a config or a data YAML names. Raises DataError when there is none."""
    file = path / "config.yaml" if path.is_dir() else path
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DataError(f"{file}: no config can be read there: {error}") from None
    return Spec.of(config.get("data", config), "data", "data").build()


def main() -> None:
    """Print the table."""
    started = time.monotonic()
    source = source_of(Path(sys.argv[1]) if len(sys.argv) > 1 else places.conf() / "data" / "shakespeare.yaml")
    documents = [(one.text.encode(), one.validation) for one in source.documents()]
    train = [text for text, held_out in documents if not held_out]
    validation = [text for text, held_out in documents if held_out]
    if not validation:
        raise DataError(f"{source.name}: data.validation=0 holds nothing out to be scored on")
    sizes = f"{sum(map(len, train)):,} bytes to train on, {sum(map(len, validation)):,} held out"
    print(f"{source.name}: {sizes} ({len(train)} and {len(validation)} documents)\norder  bits per byte")
    for order, bits in bits_per_byte(train, validation, ORDERS).items():
        print(f"{order:5d}  {bits:.3f}")
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except PlatformError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
