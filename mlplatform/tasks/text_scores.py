"""Scores of written texts beside what should have been written, by the packages that define them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mlplatform.tasks.scores import need_package
from mlplatform.tasks.seen import Seen

Score = Callable[[list[str], list[list[str]]], float]
"""From what was written, and for each text those that would have been right, to a number."""


class TextScore(Seen):
    """A score of all pairs of texts, over batches and ranks: it keeps them and asks in the end.

    Args:
        score: what gives a number for texts in their order.
    """

    higher_is_better = True

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score

    def update(self, said: Sequence[str], wanted: Sequence[str | Sequence[str]]) -> None:
        """Add texts and what should have been written: a text, or several of which each is right."""
        for text, right in zip(said, wanted, strict=True):
            self.add((text, references(right)))

    def compute(self) -> float:
        """Return the score, NaN of no texts."""
        pairs = self.of_all_ranks()
        if not pairs:
            return float("nan")
        return self.score([text for text, _ in pairs], [right for _, right in pairs])


def references(right: str | Sequence[str]) -> list[str]:
    """Return the texts that are right, of one or several."""
    return [right] if isinstance(right, str) else list(right)


def rouge_l(said: list[str], wanted: list[list[str]]) -> float:
    """Return the mean F-measure of ROUGE-L, 0 to 1, by the package rouge-score: it knows Latin letters and digits.

    Of several texts that would be right, the one that fits best counts.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    scores = [
        max(scorer.score(one, text)["rougeL"].fmeasure for one in right)
        for text, right in zip(said, wanted, strict=True)
    ]
    return sum(scores) / len(scores)


def bleu(said: list[str], wanted: list[list[str]]) -> float:
    """Return BLEU of the corpus, 0 to 100, by sacrebleu with its own settings. arXiv:1804.08771"""
    import sacrebleu

    return sacrebleu.corpus_bleu(said, _streams(wanted)).score


def chrf(said: list[str], wanted: list[list[str]]) -> float:
    """Return chrF of the corpus, 0 to 100, by sacrebleu. doi:10.18653/v1/W15-3049"""
    import sacrebleu

    return sacrebleu.corpus_chrf(said, _streams(wanted)).score


def _streams(wanted: list[list[str]]) -> list[Any]:
    """Return the first text of each row, the second of each, ...; sacrebleu takes None for one that isn't there."""
    most = max(map(len, wanted))
    return [[right[place] if place < len(right) else None for right in wanted] for place in range(most)]


def exact_match(said: list[str], wanted: list[list[str]]) -> float:
    """Return the share of texts that are one of the right ones."""
    return sum(text in right for text, right in zip(said, wanted, strict=True)) / len(said)


SCORES: dict[str, tuple[Score, str | None]] = {
    "exact": (exact_match, None),
    "rouge": (rouge_l, "rouge_score"),
    "bleu": (bleu, "sacrebleu"),
    "chrf": (chrf, "sacrebleu"),
}
"""Name -> the score, and the package that computes it."""


def of_texts(names: Iterable[str]) -> dict[str, Any]:
    """Return the named scores. Raises SpecError when the package of one is not installed."""
    for name in names:
        if (package := SCORES[name][1]) is not None:
            need_package(package, name, "task.metrics")
    return {SCORES[name][0].__name__: TextScore(SCORES[name][0]) for name in names}
