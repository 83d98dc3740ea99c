"""What simple means reach on a run's held-out records of texts: the bar for what a trained model writes or prefers.

    python scripts/text_baselines.py written OVERRIDES      (task=seq2seq)
    python scripts/text_baselines.py preferred OVERRIDES    (task=preference)

The overrides are those of `mlplatform train`: `recipes=t5_translation`. Of all held-out records:

    written    the source itself; its first 8 words; the target of the train record whose source is most alike
               (cosine of TF-IDF over 2 to 5 characters)
    preferred  the longer text; the likelier one by character n-grams of the train split's chosen texts
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from baselines import witten_bell
from held_out import call, records_of
from numpy.typing import NDArray

from mlplatform.data.records import Record
from mlplatform.tasks.text_scores import SCORES

FIRST_WORDS = 8
ORDERS = (3, 5)
"""Characters of the n-grams."""


def written(overrides: Sequence[str], say: Callable[[str], None] = print) -> None:
    """Print the task's scores of what is written without a model."""
    config, _, train, held_out = records_of(overrides)
    wanted = [[record["target"]] for record in held_out]
    sources = [record["source"] for record in held_out]
    means = {
        "the source": sources,
        f"its first {FIRST_WORDS} words": [" ".join(text.split()[:FIRST_WORDS]) for text in sources],
        "the nearest's target": nearest(train, sources),
    }
    names = config["task"]["metrics"]
    say(f"{len(wanted)} records held out    " + "".join(f"{name:>8s}" for name in names))
    for name, texts in means.items():
        say(f"{name:26s}" + "".join(f"{SCORES[score][0](texts, wanted):8.3f}" for score in names))


def nearest(train: Sequence[Record], sources: Sequence[str]) -> list[str]:
    """Return, for each source, the target of the train record whose source is most alike."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    known = [(record["source"], record["target"]) for record in train]
    model = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    table = model.fit_transform([source for source, _ in known])
    best = (model.transform(sources) @ table.T).toarray().argmax(1)
    return [known[place][1] for place in best]


def preferred(overrides: Sequence[str], say: Callable[[str], None] = print) -> None:
    """Print the share of pairs whose chosen text is the one preferred without a model; a tie is half."""
    _, _, train, held_out = records_of(overrides)
    chosen, rejected = ([record[name] for record in held_out] for name in ("chosen", "rejected"))
    say(f"{len(chosen)} pairs held out")
    say(f"the longer text       {_wins([len(t) for t in chosen], [len(t) for t in rejected]):.3f}")
    known = [record["chosen"] for record in train]
    for order in ORDERS:
        scores = character_logs(known, chosen + rejected, order)
        say(f"{order}-grams of characters {_wins(scores[: len(chosen)], scores[len(chosen) :]):.3f}")


def _wins(ours: Sequence[float], theirs: Sequence[float]) -> float:
    better = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(ours, theirs, strict=True)]
    return sum(better) / len(better)


def character_logs(known: Sequence[str], texts: Sequence[str], order: int) -> list[float]:
    """Return the log-probability of each text, its end among it, by character n-grams of the known texts."""
    letters = {letter: number for number, letter in enumerate(sorted(set("".join([*known, *texts]))), 1)}
    (train, _), (wanted, owners) = (_grams(part, letters, order) for part in (known, texts))
    logs = np.log(list(witten_bell(train, wanted, len(letters) + 1))[-1])
    return np.bincount(owners, weights=logs, minlength=len(texts)).tolist()


def _grams(texts: Sequence[str], letters: dict[str, int], order: int) -> tuple[list[NDArray[np.int64]], Any]:
    """Return every character with those before it, nearest first; 0 stands for an end, -1 before a text."""
    edge = np.full(order - 1, -1)
    rows = [np.concatenate([edge, [letters[letter] for letter in text], [0]]).astype(np.int64) for text in texts]
    parts = [np.concatenate([row[order - 1 - back : len(row) - back] for row in rows]) for back in range(order)]
    return parts, np.repeat(np.arange(len(texts)), [len(row) - order + 1 for row in rows])


REPORTS = {"written": written, "preferred": preferred}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in REPORTS:
        sys.exit(__doc__)
    sys.exit(call(REPORTS[sys.argv[1]], sys.argv[2:]))
