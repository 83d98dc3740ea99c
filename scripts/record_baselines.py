"""What simple methods reach on the held-out records of a recipe: the bar for a trained model's metrics.

    python scripts/record_baselines.py [OVERRIDES]

The overrides are those of `mlplatform train`: `recipes=sentiment`. What is tried follows from the task's fields:

    text, label     the commonest class; TF-IDF and logistic regression
    tokens, tags    the commonest tag; each word's commonest tag
    image, label    the commonest class; logistic regression on pixels; the three nearest neighbours
    image, text     chance; ridge regression from pixels to the words of the text; with a label also the class whose
                    words ridge regression finds, and what classifiers of the label reach
    audio, label    the commonest class; the class of the nearest log-mel spectrogram, 24 frames long; logistic
                    regression on the mean and the deviation of each of 40 log-mel bands
    question, context, answers      (exact match and F1 in percent) no answer; the commonest answer that stands in the
                    context; what follows the eight characters that most often stand before an answer, to the next space
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from held_out import Records, call, records_of

from mlplatform.errors import SpecError
from mlplatform.processors.image import pixels_of

CUE = 8
"""Characters before an answer."""


def commonest(train: Sequence[Any], held_out: Sequence[Any]) -> float:
    """Return the accuracy of the commonest value."""
    [(value, _)] = Counter(train).most_common(1)
    return float(np.mean([one == value for one in held_out]))


def of_texts(train: Records, held_out: Records) -> dict[str, float]:
    """Return accuracies for a text and its class."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=2000)
    )
    texts, labels = ([[record[name] for record in part] for part in (train, held_out)] for name in ("text", "label"))
    model.fit(texts[0], labels[0])
    return {"commonest class": commonest(*labels), "TF-IDF and logistic regression": model.score(texts[1], labels[1])}


def of_tags(train: Records, held_out: Records) -> dict[str, float]:
    """Return accuracies over words."""
    tags: dict[str, Counter[str]] = defaultdict(Counter)
    for record in train:
        for word, tag in zip(record["tokens"], record["tags"], strict=True):
            tags[word][tag] += 1
    every = [tag for record in train for tag in record["tags"]]
    [(usual, _)] = Counter(every).most_common(1)
    pairs = [pair for record in held_out for pair in zip(record["tokens"], record["tags"], strict=True)]
    right = [(tags[word].most_common(1)[0][0] if word in tags else usual) == tag for word, tag in pairs]
    return {
        "commonest tag": commonest(every, [tag for _, tag in pairs]),
        "each word's commonest": float(np.mean(right)),
    }


def of_images(train: Records, held_out: Records) -> dict[str, float]:
    """Return accuracies for an image and its class."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    pixels, labels = [_pixels(part) for part in (train, held_out)], [[r["label"] for r in p] for p in (train, held_out)]
    found = {"commonest class": commonest(*labels)}
    for name, model in (
        ("logistic regression on pixels", LogisticRegression(max_iter=3000)),
        ("three nearest neighbours", KNeighborsClassifier(3)),
    ):
        found[name] = model.fit(pixels[0], labels[0]).score(pixels[1], labels[1])
    return found


def of_recordings(train: Records, held_out: Records) -> dict[str, float]:
    """Return accuracies for a recording and its class."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from transcript_baselines import FRAMES, pictures

    seen, labels = [pictures(part) for part in (train, held_out)], [[r["label"] for r in p] for p in (train, held_out)]
    nearest = [labels[0][place] for place in (seen[1] @ seen[0].T).argmax(1)]
    bands = [one.reshape(len(one), -1, FRAMES) for one in seen]
    means = [np.concatenate([one.mean(2), one.std(2)], 1) for one in bands]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000)).fit(means[0], labels[0])
    return {
        "commonest class": commonest(*labels),
        "the nearest recording": float(np.mean([a == b for a, b in zip(nearest, labels[1], strict=True)])),
        "logistic regression on mean spectra": model.score(means[1], labels[1]),
    }


def of_pairs(train: Records, held_out: Records) -> dict[str, float]:
    """Return the recall of each held-out image's own text among all held-out ones, and accuracies where classes are."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    words = TfidfVectorizer()
    target = words.fit_transform([record["text"][0] for record in train]).toarray()
    said = Ridge(alpha=100.0).fit(_pixels(train), target).predict(_pixels(held_out))
    scores = said @ words.transform([record["text"][0] for record in held_out]).toarray().T
    ranks = (scores >= np.diag(scores)[:, None]).sum(1) - 1
    count = len(held_out)
    chance = {f"chance, recall at {k}": k / count for k in (1, 5, 10)}
    recalls = {f"ridge from pixels to words, recall at {k}": float((ranks < k).mean()) for k in (1, 5, 10)}
    if any(record.get("label") is None for record in (*train, *held_out)):
        return {**chance, **recalls}
    names = sorted({record["label"] for record in train})
    nearest = (said @ words.transform(names).toarray().T).argmax(1)
    right = [names[place] == record["label"] for place, record in zip(nearest, held_out, strict=True)]
    zero_shot = {"ridge from pixels to words, the class whose name is nearest": float(np.mean(right))}
    return {**chance, **recalls, **zero_shot, **of_images(train, held_out)}


def of_questions(train: Records, held_out: Records) -> dict[str, float]:
    """Return SQuAD's exact match and F1."""
    texts = [text for record in train for text in record["answers"]["text"]]
    known = [text for text, _ in Counter(texts).most_common()]
    [(cue, _)] = Counter(
        record["context"][max(start - CUE, 0) : start]
        for record in train
        for start in record["answers"]["answer_start"]
    ).most_common(1)
    contexts = [record["context"] for record in held_out]
    ways = {
        "no answer": [""] * len(contexts),
        "the commonest that stands there": [next((t for t in known if t in c), "") for c in contexts],
        f"what follows {cue!r}": [(c.partition(cue)[2].split() or [""])[0] for c in contexts],
    }
    true = [record["answers"]["text"] for record in held_out]
    return {f"{name}, {score}": value for name, said in ways.items() for score, value in squad(said, true).items()}


def squad(said: Sequence[str], true: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return exact match and F1 in percent; no answer is the empty text."""
    from torchmetrics.functional.text import squad as scored

    told = [{"prediction_text": text, "id": str(i)} for i, text in enumerate(said)]
    wanted = [
        {"answers": {"text": list(texts) or [""], "answer_start": [0] * max(1, len(texts))}, "id": str(i)}
        for i, texts in enumerate(true)
    ]
    return {name.replace("_", " "): float(value) for name, value in scored(told, wanted).items()}


def _pixels(records: Records) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(pixels_of(r["image"], r.place, False), float).reshape(-1) / 255 for r in records])


METHODS: dict[tuple[str, ...], Callable[[Records, Records], dict[str, float]]] = {
    ("tokens", "tags"): of_tags,
    ("image", "label"): of_images,
    ("image", "text"): of_pairs,
    ("audio", "label"): of_recordings,
    ("text", "label"): of_texts,
    ("question", "context", "answers"): of_questions,
}


def report(overrides: Sequence[str], say: Callable[[str], None] = print) -> None:
    """Print what each method reaches on the validation split of a run's data."""
    started = time.monotonic()
    _, reads, train, held_out = records_of(overrides)
    needed = set(reads.fields) - reads.optional
    method = next((made for fields, made in METHODS.items() if set(fields) == needed), None)
    if method is None:
        raise SpecError(f"no simple method here reads {', '.join(sorted(needed))}")
    for name, value in method(list(train), list(held_out)).items():
        say(f"{value:.4f}  {name}")
    say(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(call(report, sys.argv[1:]))
