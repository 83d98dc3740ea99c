"""Texts and images that belong together, told from those that don't. arXiv:2103.00020, arXiv:2303.15343"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlplatform.context import Output
from mlplatform.data.augment import Augment, shown
from mlplatform.data.collate import Row
from mlplatform.data.examples import Tools, stacked
from mlplatform.data.fields import Class, Field, ListOfWords, Picture, Words
from mlplatform.data.packing import Arrays
from mlplatform.data.records import Reads, Record
from mlplatform.errors import SpecError
from mlplatform.models.dual_tower import pair_loss
from mlplatform.registry import Positive, Spec, Text, block
from mlplatform.tasks.record_task import RecordTask
from mlplatform.tasks.retrieval import Recalls, ZeroShot
from mlplatform.tasks.task import Batch


@block("task/contrastive")
class Contrastive(RecordTask):
    """Fields: `image`, `text` (one, or several of which each epoch draws one), and perhaps `label`.

    Every text of an optimizer step is compared with every image of it, whatever its micro-batches and ranks: towers are
    run twice when there are several micro-batches, without gradients at first (arXiv:2101.06983). Metrics: recall at 1,
    5 and 10 both ways among all held-out pairs; and where rows have a `label`, zero-shot accuracy.

    Args:
        augment: changes of a training image, in order: `[{kind: rand_augment}, {kind: crop}]`.
        templates: sentences a class's name stands in, at `{}`, for zero-shot classification.
        chunk: rows of the table of scores held at a time.
    """

    monitor = "validation/image_to_text_r1"
    own_keys = (*RecordTask.own_keys, "classes")

    def __init__(
        self,
        model: nn.Module,
        *,
        augment: list[Annotated[Spec, "augment"]] = [],  # noqa: B006  (read as data, never changed)
        templates: list[Text] = ["a photo of a {}"],  # noqa: B006
        chunk: Positive = 1024,
    ) -> None:
        if wrong := [text for text in templates if "{}" not in text]:
            raise SpecError(f"templates: {wrong[0]!r} has no {{}}, where the name of a class goes")
        super().__init__(model)
        self.templates, self.chunk = list(templates), chunk
        self.augment: list[Augment] = [change.build() for change in augment]
        self.own: tuple[Tensor, Tensor] | None = None

    def check_model(self, model: nn.Module) -> None:
        if not hasattr(model, "logit_scale"):
            told = f"task=contrastive does not fit this {getattr(model, 'kind', 'model')}"
            raise SpecError(f"{told}: it needs a dual_tower, such as model=clip_tiny")

    def reads(self) -> Reads:
        return Reads({"image": Picture(), "text": Captions(), "label": Class()}, frozenset({"label"}))

    def examples(self, tools: Tools) -> Pairs:
        length = min(tools.length, self.model.text.trunk.context_length)  # type: ignore[union-attr, arg-type]
        names = tools.numbers("label")
        tokenizer, processor = tools.need("tokenizer", self.kind), tools.need("processor", self.kind)
        return Pairs(tokenizer, processor, length, names, self.augment)

    def prepare_measures(self, tools: Tools) -> None:
        check_end(self.model, tools.need("tokenizer", self.kind))
        self.measures = {"recall": Recalls()}
        if tools.classes.get("label"):
            self.measures["zero_shot"] = ZeroShot()

    def targets(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["input_ids"]), device=batch["input_ids"].device)

    def backward_all(self, micro_batches: list[Batch], total: int) -> Tensor:
        """Give every parameter its gradient of the loss over all pairs of all micro-batches and ranks; return it."""
        several = len(micro_batches) > 1
        if several:
            state = [torch.random.get_rng_state(), *self._cuda_state()]
            with torch.no_grad():
                parts = [self._embed(batch) for batch in micro_batches]
            self._restore(state)
        else:
            parts = [self._embed(micro_batches[0])]
        texts, images = (torch.cat(part) for part in zip(*parts, strict=True))
        leaves = [part.detach().requires_grad_() for part in (texts, images)]
        loss = self._loss_of_all(*leaves) / total
        towers = torch.autograd.grad(loss, leaves, retain_graph=True)
        start = 0
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            with self.held_back(last):
                text, image = self._embed(batch) if several else (texts, images)
                rows = slice(start, start + len(text))
                # Ranks' gradients are averaged: the towers' are each rank's own part, the scale's is the same on all.
                pull = (text * towers[0][rows]).sum() + (image * towers[1][rows]).sum()
                objective = pull * self.share.count + (self._scale_alone(loss) if last else 0.0)
                with torch.autocast(self.device.type, enabled=False):
                    self.manual_backward(objective)
            start += len(text)
        return loss.detach().double()

    def _scale_alone(self, loss: Tensor) -> Tensor:
        """Return a term whose gradient is the loss's for the scale and the bias alone."""
        own: list[Any] = [self.model.logit_scale, self.model.logit_bias]
        trained = [p for p in own if p is not None and p.requires_grad]
        slopes = torch.autograd.grad(loss, trained) if trained else ()
        return sum(((p * slope).sum() for p, slope in zip(trained, slopes, strict=True)), loss.new_zeros(()))

    def _embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        given = self.inputs(batch)
        pixels = given.pop("pixel_values")
        out = self.model(**given)
        return out.text_embeds.float(), self.model(pixel_values=pixels).image_embeds.float()

    def _loss_of_all(self, texts: Tensor, images: Tensor) -> Tensor:
        """Return the sum of the loss over the pairs of all ranks; the gradient reaches this rank's own vectors."""
        everyone = [self._gathered(part) for part in (texts, images)]
        scale, bias, kind = self.model.logit_scale, self.model.logit_bias, self.model.loss

        def rows(start: int, stop: int) -> Tensor:
            return pair_loss(*everyone, scale, bias, kind, start, stop)  # type: ignore[arg-type]

        count = len(everyone[0])
        starts = range(0, count, self.chunk)
        pieces = [checkpoint(rows, s, min(s + self.chunk, count), use_reentrant=False) for s in starts]
        return torch.stack(pieces).sum()  # type: ignore[arg-type]

    def _gathered(self, own: Tensor) -> Tensor:
        """Return the vectors of all ranks in their order, this rank's with their gradient."""
        if self.share.count == 1:
            return own
        group = self.share.group
        sizes = [torch.zeros((), dtype=torch.long, device=own.device) for _ in range(self.share.count)]
        torch.distributed.all_gather(sizes, torch.tensor(len(own), device=own.device), group)
        most = int(max(sizes))
        parts = [own.new_zeros(most, own.shape[1]) for _ in sizes]
        torch.distributed.all_gather(parts, F.pad(own.detach(), (0, 0, 0, most - len(own))), group)
        parts = [part[: int(size)] for part, size in zip(parts, sizes, strict=True)]
        parts[self.share.number] = own
        return torch.cat(parts)

    @staticmethod
    def _cuda_state() -> list[Tensor]:
        return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    @staticmethod
    def _restore(state: list[Tensor]) -> None:
        torch.random.set_rng_state(state[0])
        if state[1:]:
            torch.cuda.set_rng_state_all(state[1:])

    def begin_validation(self) -> None:
        super().begin_validation()
        zero_shot = self.measures.get("zero_shot")
        if isinstance(zero_shot, ZeroShot):
            zero_shot.classes = self.class_vectors()

    @torch.no_grad()
    def class_vectors(self) -> Tensor:
        """Return a vector (classes, width) of unit length for each class: the mean over the templates."""
        tokenizer, made = self.tools.need("tokenizer", self.kind), []
        training = self.model.training
        self.model.eval()
        for name in self.tools.classes["label"]:
            texts = [tokenizer.cut(t.replace("{}", name), None, self.tools.length).ids for t in self.templates]
            vectors = [self.model(input_ids=torch.tensor([ids], device=self.device)).text_embeds for ids in texts]
            made.append(F.normalize(torch.cat(vectors).float().mean(0), dim=0))
        self.model.train(training)
        return torch.stack(made)

    def scored(self, batch: Batch) -> Output:
        """Return both towers' vectors, and the loss within this micro-batch."""
        return self.model(**self.inputs(batch), return_loss=True)

    def observe(self, batch: Batch, out: Output) -> None:
        self.measures["recall"].update(out.text_embeds.float(), out.image_embeds.float())
        if "zero_shot" in self.measures:
            self.measures["zero_shot"].update(out.image_embeds.float(), batch["classes"])

    def predictions(self, batch: Batch, out: Output) -> list[dict[str, Any]]:
        """Return how well each image fits its text; with classes, the nearest one."""
        told = [{"cosine": value} for value in (out.text_embeds * out.image_embeds).sum(-1).tolist()]
        zero_shot = self.measures.get("zero_shot")
        if isinstance(zero_shot, ZeroShot):
            best = (out.image_embeds.float() @ zero_shot.classes.t()).argmax(-1).tolist()
            told = [{**one, "label": self.tools.classes["label"][i]} for one, i in zip(told, best, strict=True)]
        return told


def check_end(model: Any, tokenizer: Any) -> None:
    """Raise SpecError when a text tower takes its vector from another token than the one texts end with."""
    head, (_, end) = model.text.head, tokenizer.frame
    if getattr(head, "pool", None) != "end":
        return
    if tokenizer.cut("a", None, 8).ids[-1] != end:
        told = "the text tower takes its vector from the token a text ends with, and this tokenizer puts none there"
        raise SpecError(f"tokenizer: {told}; take one that frames texts, such as tokenizer=masked_bpe")
    taken = tokenizer.vocab_size - 1 if head.end_token == 2 else head.end_token
    if taken != end:
        chosen, name = model.spec["text"]["head"], tokenizer.backend.id_to_token(end)
        named = f"model.text.heads.{chosen}" if isinstance(chosen, str) else "model.text.head"
        what = "the highest token" if head.end_token == 2 else f"token {head.end_token}"
        raise SpecError(f"{named}.end_token={head.end_token} takes {what}, and texts end with {name}; set it to {end}")


class Captions(Field):
    """A text, or a list of texts that say the same thing otherwise."""

    name, text = "captions", True

    def clean(self, value: Any, folder: Path) -> list[str]:
        return ListOfWords().clean(value, folder) if isinstance(value, list) else [Words().clean(value, folder)]


class Pairs:
    """Rows of a text's tokens and an image's pixels."""

    def __init__(
        self, tokenizer: Any, processor: Any, length: int, classes: dict[str, int], augment: Sequence[Augment] = ()
    ) -> None:
        self.tokenizer, self.processor, self.length, self.classes = tokenizer, processor, length, classes
        self.augment = list(augment)

    def row(self, record: Record, random: np.random.Generator | None) -> Arrays:
        texts = record["text"]
        text = texts[0] if random is None else texts[int(random.integers(len(texts)))]
        row: Arrays = {
            "input_ids": np.asarray(self.tokenizer.cut(text, None, self.length).ids),
            "pixel_values": self.processor(shown(record, self.augment, random))["pixel_values"][0].numpy(),
        }
        if self.classes:
            row["classes"] = np.asarray(self.classes.get(record.get("label"), -100))
        return row

    def __call__(self, rows: list[Row]) -> Batch:
        return stacked(rows, {"input_ids": self.tokenizer.filler})
