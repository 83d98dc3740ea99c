"""Scores of written texts beside what should have been written, by the packages that define them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torchmetrics import Metric

from mlplatform.tasks.scores import need_package

Score = Callable[[list[str], list[str]], float]


class TextScore(Metric):
    """A score of all pairs of texts, over batches and ranks: it keeps their UTF-8 bytes and asks in the end.

    Args:
        score: from what was written and what should have been, in the same order, to a number.
    """

    higher_is_better = True
    full_state_update = False
    held: list[torch.Tensor]
    sizes: list[torch.Tensor]

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score
        self.add_state("held", [], dist_reduce_fx="cat")
        self.add_state("sizes", [], dist_reduce_fx="cat")

    def update(self, said: Sequence[str], wanted: Sequence[str]) -> None:
        """Add texts and what should have been written; of no texts too, so that every rank has something to send."""
        data = [text.encode() for pair in zip(said, wanted, strict=True) for text in pair]
        self.held.append(torch.tensor(list(b"".join(data)), dtype=torch.uint8, device=self.device))
        self.sizes.append(torch.tensor([len(one) for one in data], dtype=torch.long, device=self.device))

    def compute(self) -> float:
        """Return the score, NaN of no texts."""
        parts: list[list[torch.Tensor]] = [p if isinstance(p, list) else [p] for p in (self.held, self.sizes)]
        held, sizes = (torch.cat(part or [torch.empty(0)]) for part in parts)
        if not len(sizes):
            return float("nan")
        texts = [bytes(part.tolist()).decode() for part in held.cpu().split(sizes.tolist())]
        return self.score(texts[::2], texts[1::2])


def rouge_l(said: list[str], wanted: list[str]) -> float:
    """Return the mean F-measure of ROUGE-L, 0 to 1, by the package rouge-score: it knows Latin letters and digits."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    scores = [scorer.score(right, text)["rougeL"].fmeasure for text, right in zip(said, wanted, strict=True)]
    return sum(scores) / len(scores)


def bleu(said: list[str], wanted: list[str]) -> float:
    """Return BLEU of the corpus, 0 to 100, by sacrebleu with its own settings. arXiv:1804.08771"""
    import sacrebleu

    return sacrebleu.corpus_bleu(said, [wanted]).score


def chrf(said: list[str], wanted: list[str]) -> float:
    """Return chrF of the corpus, 0 to 100, by sacrebleu. doi:10.18653/v1/W15-3049"""
    import sacrebleu

    return sacrebleu.corpus_chrf(said, [wanted]).score


SCORES: dict[str, tuple[Score, str]] = {
    "rouge": (rouge_l, "rouge_score"),
    "bleu": (bleu, "sacrebleu"),
    "chrf": (chrf, "sacrebleu"),
}


def of_texts(names: Iterable[str]) -> dict[str, Any]:
    """Return the named scores. Raises SpecError when the package of one is not installed."""
    for name in names:
        need_package(SCORES[name][1], name, "task.metrics")
    return {SCORES[name][0].__name__: TextScore(SCORES[name][0]) for name in names}
