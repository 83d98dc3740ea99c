"""What counting reaches on a run's own held-out targets, in nats per target: the bar for a trained model's loss.

    python scripts/baselines.py [OVERRIDES]

The overrides are those of `mlplatform train`: `recipes=bert_masked`. Counted are the labels its own collator makes of
the train split (one epoch), scored those of the validation split, each from what the model sees beside it:

    masked tokens   nothing; what stands in their place (the mask, the token itself, another one); also the token to the
                    left; also the one to the right
    written tokens  nothing; the label before; the two labels before
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from held_out import call
from numpy.typing import NDArray

from mlplatform.cli.compose import compose
from mlplatform.data.collate import IGNORED, Batch, Row
from mlplatform.data.module import DataModule
from mlplatform.registry import Spec

Codes = NDArray[np.int64]
ROWS = 256


def split_targets(data: DataModule, split: str) -> list[Codes]:
    """Return the labels of a split, and the tokens beside each, the nearest first, as the model meets them."""
    rows = data.train_rows if split == "train" else data.validation_rows
    seed = data.seed if split == "train" else 0
    found = []
    for start in range(0, len(rows), ROWS):
        numbers = range(start, min(start + ROWS, len(rows)))
        batch = data.collator([Row(rows.row(n, seed, 0), seed, 0, n) for n in numbers])
        found.append(neighbours(batch))
    return [np.concatenate(part) for part in zip(*found, strict=True)]


def neighbours(batch: Batch) -> list[Codes]:
    """Return a batch's targets, and tokens the model may look at beside each; -1 stands outside the row.

    Where the labels are the inputs themselves or a decoder's: the two before. Where tokens were hidden: the input at
    the place itself, to its left and to its right.
    """
    labels, inputs = batch["labels"].numpy(), batch["input_ids"].numpy()
    written = labels.shape != inputs.shape or bool((inputs == labels)[labels != IGNORED].all())
    seen = labels if written else inputs
    edge = np.full((len(labels), 2), -1)
    around = np.concatenate([edge, np.where(seen == IGNORED, -1, seen), edge], 1)
    length, chosen = labels.shape[1], labels != IGNORED
    places = (-1, -2) if written else (0, -1, 1)
    return [labels[chosen], *(around[:, 2 + place : 2 + place + length][chosen] for place in places)]


def cross_entropies(train: Sequence[Codes], held_out: Sequence[Codes], words: int) -> list[float]:
    """Return nats per target for contexts of 0, 1, ... neighbours, by Witten-Bell interpolation."""
    return [float(-np.log(found).mean()) for found in witten_bell(train, held_out, words)]


def witten_bell(train: Sequence[Codes], held_out: Sequence[Codes], words: int) -> Iterator[NDArray[np.float64]]:
    """Yield the probability of each held-out target for contexts of 0, 1, ... neighbours.

    p_k(w | c) = (n(c w) + t(c) p_{k-1}(w | c')) / (n(c) + t(c)), with t(c) the number of different targets seen with c
    and p_{-1} = 1 / words (Witten and Bell 1991, doi:10.1109/18.87000).
    """
    found = np.full(len(held_out[0]), 1 / words)
    for order in range(len(train)):
        known, wanted = (_contexts(part, order, words) for part in (train, held_out))
        contexts, counts = np.unique(known, return_counts=True)
        pairs, pair_counts = np.unique(known * words + train[0], return_counts=True)
        owners, kinds = np.unique(pairs // words, return_counts=True)
        n = _look_up(pairs, pair_counts, wanted * words + held_out[0])
        total, different = _look_up(contexts, counts, wanted), _look_up(owners, kinds, wanted)
        found = np.where(total > 0, (n + different * found) / np.maximum(total + different, 1), found)
        yield found


def _contexts(part: Sequence[Codes], order: int, words: int) -> Codes:
    codes = np.zeros(len(part[0]), dtype=np.int64)
    for neighbour in part[1 : 1 + order]:
        codes = codes * (words + 1) + neighbour + 1
    return codes


def _look_up(keys: Codes, values: Codes, wanted: Codes) -> Codes:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def of_run(overrides: Iterable[str]) -> tuple[list[float], int, int]:
    """Return the cross-entropies for a run's config, and the numbers of targets counted and scored."""
    result = compose("train", list(overrides)).check()
    with result.located():
        experiment = Spec.of({**result.config, "teacher": None, **_taught(result.config)}, "run").build()
        data = experiment.prepare(experiment.check())
    train, held_out = split_targets(data, "train"), split_targets(data, "validation")
    return cross_entropies(train, held_out, data.tokenizer.vocab_size), len(train[0]), len(held_out[0])


def _taught(config: dict[str, object]) -> dict[str, object]:
    """A student is scored as its objective is."""
    task = config["task"]
    return {"task": task["objective"]} if isinstance(task, dict) and "objective" in task else {}


def report(overrides: Sequence[str], say: Callable[[str], None] = print) -> None:
    """Print the table."""
    started = time.monotonic()
    nats, counted, scored = of_run(overrides)
    say(f"{counted:,} targets counted, {scored:,} held out\nneighbours  nats per target")
    for order, value in enumerate(nats):
        say(f"{order:10d}  {value:.3f}")
    say(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(call(report, sys.argv[1:]))
