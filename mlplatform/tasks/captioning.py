"""Captions: what is on an image, in words. arXiv:2201.12086"""

from __future__ import annotations

from typing import Literal

from torch import nn

from mlplatform.data.examples import Tools
from mlplatform.data.fields import Picture
from mlplatform.data.records import Reads
from mlplatform.registry import Natural, Positive, block
from mlplatform.tasks.contrastive import Captions
from mlplatform.tasks.text_scores import of_texts
from mlplatform.tasks.visual_writing import Prompted


@block("task/captioning")
class Captioning(Prompted):
    """Fields: `image` and `text`, a caption, or several of which each epoch draws one. The loss is over the caption.

    Metrics: loss and perplexity of all held-out captions (of several the first), and scores of what is written about
    the first held-out images.

    Args:
        prompt: stands before each caption and is not learned: `"a picture of "`; a model that reads the image within
            the text reads it at {image}, or before the prompt.
        caption_length: tokens of a caption at most, its end among them.
        begin: the token a caption begins with, null for the tokenizer's own start; 30522 in BLIP's checkpoints.
        metrics: `exact` (the share of captions that are one of the right ones), `bleu`, `rouge` (ROUGE-L) and `chrf`.
        sampled: how many held-out images are written about in validation; the first ones.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        prompt: str = "",
        caption_length: Positive = 32,
        begin: Natural | None = None,
        metrics: list[Literal["exact", "rouge", "bleu", "chrf"]] = ["exact", "bleu", "rouge"],  # noqa: B006  (data)
        sampled: Natural = 256,
    ) -> None:
        super().__init__(model, prompt, caption_length, begin)
        self.scores, self.sampled = metrics, sampled
        of_texts(metrics)  # a package that is missing is told before anything is read

    def reads(self) -> Reads:
        return Reads({"image": Picture(), "text": Captions()})

    def prepare_measures(self, tools: Tools) -> None:
        self.check_vocabulary(tools.need("tokenizer", self.kind))
        self.measures = of_texts(self.scores) if self.sampled else {}
