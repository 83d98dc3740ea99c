"""Answers to questions about images, in words. arXiv:1505.00468, arXiv:2201.12086"""

from __future__ import annotations

import re

from torch import nn

from mlplatform.data.examples import Tools
from mlplatform.data.fields import Picture, Words
from mlplatform.data.records import Reads
from mlplatform.registry import Natural, Positive, block
from mlplatform.tasks.contrastive import Captions
from mlplatform.tasks.text_scores import TextScore
from mlplatform.tasks.visual_writing import Prompted

NUMBERS = "zero one two three four five six seven eight nine ten"
DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(NUMBERS.split())}}
ARTICLES = {"a", "an", "the"}


@block("task/visual_question_answering")
class VisualQuestionAnswering(Prompted):
    """Fields: `image`, `question` and `answer`, a text, or several accepted ones of which each epoch draws one.

    The loss is over the answer. Metrics: loss and perplexity of all held-out answers (of several the first), and the
    share of answers written about the first held-out rows that are one of the accepted ones, both normalised as VQA
    does (`normalised`).

    Args:
        prompt: what is asked, with {question}: a model that reads the image within the text reads it at {image}, or
            before all else: `"USER: {image}\\n{question} ASSISTANT:"` for LLaVA 1.5.
        answer_length: tokens of an answer at most, its end among them.
        begin: the token an answer begins with where a decoder writes it, and a text otherwise; null for the tokenizer's
            own start; 30522 in BLIP's checkpoints.
        sampled: how many held-out rows are answered in validation; the first ones.
        beams: 1 writes greedily; more search for the likeliest answer, where a decoder writes it.
    """

    fields = ("question",)
    answer_field = "answer"
    monitor = "validation/accuracy"

    def __init__(
        self,
        model: nn.Module,
        *,
        prompt: str = "{question}",
        answer_length: Positive = 10,
        begin: Natural | None = None,
        sampled: Positive = 1024,
        beams: Positive = 1,
    ) -> None:
        super().__init__(model, prompt, answer_length, begin)
        self.sampled, self.beams = sampled, beams

    def reads(self) -> Reads:
        return Reads({"image": Picture(), "question": Words(), "answer": Captions()})

    def prepare_measures(self, tools: Tools) -> None:
        self.check_vocabulary(tools.need("tokenizer", self.kind))
        self.measures = {"accuracy": TextScore(accuracy)}


def accuracy(said: list[str], wanted: list[list[str]]) -> float:
    """Return the share of answers that are one of the accepted ones once both are normalised."""
    right = [normalised(text) in map(normalised, accepted) for text, accepted in zip(said, wanted, strict=True)]
    return sum(right) / len(right)


def normalised(text: str) -> str:
    """Return an answer as VQA's evaluation compares it: lower case, numbers to ten as digits, no articles, no signs.

    Signs within numbers stay (1,5 and 3.14). Where VQA puts apostrophes into words that lack them (dont), they are
    taken out of all words here.
    """
    bare = re.sub(r"(?<!\d)[.,]|[.,](?!\d)|[^\w\s.,']", " ", text.lower()).replace("'", "")
    return " ".join(DIGITS.get(word, word) for word in bare.split() if word not in ARTICLES)
