"""Learning from a teacher: what it would answer, and what goes on inside it. arXiv:1503.02531, arXiv:1910.01108"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.context import Output
from mlplatform.data.collate import Collator
from mlplatform.errors import CheckpointError, SpecError
from mlplatform.models.trained import frozen_digest
from mlplatform.registry import NonNegativeFloat, PositiveFloat, Spec, block
from mlplatform.tasks.task import Batch, Task, check_fit, real_tokens


@block("task/distillation")
class Distillation(Task):
    """hard * the objective's own loss + soft * T^2 KL(teacher / T, student / T) + cosine * (1 - cos of hidden states).

    The first is a mean over the objective's targets, the other two over all tokens but padding. The metrics are the
    objective's.

    Args:
        objective: the task the student is trained for besides, `masked_lm` or `causal_lm`.
        temperature: T, which both sets of logits are divided by.
        hard, soft, cosine: weights; DistilBERT's are 2, 5 and 1.
        layers: whose hidden states are compared: the `last` ones, or `every` layer of the student's with that of the
            teacher's at the same share of its depth.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        *,
        objective: Annotated[Spec, "task"],
        temperature: PositiveFloat = 2.0,
        hard: NonNegativeFloat = 2.0,
        soft: NonNegativeFloat = 5.0,
        cosine: NonNegativeFloat = 1.0,
        layers: Literal["last", "every"] = "last",
    ) -> None:
        own: Task = objective.build(model=model)
        self.head_task, self.attention = own.head_task or objective.kind, own.attention
        self.assembly, self.layouts, self.goes_on = own.assembly, own.layouts, own.goes_on
        if self.assembly != "single_tower" or own.head_task:
            raise SpecError(f"objective={objective.kind}: a teacher is listened to in masked_lm and causal_lm")
        if soft == cosine == 0:
            raise SpecError("soft=0 and cosine=0 leave the teacher unheard; one of them must be more")
        super().__init__(model)
        self._check_teacher(own, model, teacher, cosine)
        # Tuples keep them out of this module: the teacher is not saved, moved or trained with it.
        self._objective, self._teacher = (own,), (teacher.requires_grad_(False).eval(),)
        self.temperature, self.hard, self.soft, self.cosine, self.layers = temperature, hard, soft, cosine, layers
        self.parts: dict[str, Tensor] = {}
        self._heard = ""

    def _check_teacher(self, own: Task, model: nn.Module, teacher: nn.Module, cosine: float) -> None:
        try:
            check_fit(own, teacher)
        except SpecError as error:
            raise SpecError(f"the teacher: {error}") from None
        student: Any = model.trunk
        other: Any = teacher.trunk
        words, known = student.table.num_embeddings, other.table.num_embeddings
        if words != known:
            raise SpecError(f"the teacher knows {known} tokens and the student {words}: they must be the same ones")
        if cosine and student.dim != other.dim:
            told = f"cosine={cosine} compares hidden states, and the student's are {student.dim} wide"
            raise SpecError(f"{told}, the teacher's {other.dim}; set task.cosine=0")
        if student.context_length > other.context_length:
            told = f"the teacher reads {other.context_length} tokens, the student {student.context_length}"
            raise SpecError(f"{told}; set model.trunk.context_length={other.context_length} or less")

    @property
    def objective(self) -> Task:
        """What the student is trained for besides."""
        return self._objective[0]

    @property
    def teacher(self) -> nn.Module:
        """The teacher, which never trains."""
        return self._teacher[0]

    def collator(self, tokenizer: Any, length: int) -> Collator:
        return self.objective.collator(tokenizer, length)

    def targets(self, batch: Batch) -> Tensor:
        return self.objective.targets(batch)

    def metrics(self, sums: Tensor) -> dict[str, float]:
        return self.objective.metrics(sums)

    def gauges(self) -> dict[str, float]:
        """Return the three means of the last step of this rank, before they are weighed."""
        return {**super().gauges(), **{f"train/{name}": float(value) for name, value in self.parts.items()}}

    def configure_model(self) -> None:
        """Keep this rank's part of the teacher too."""
        super().configure_model()
        self.share.divide(self.teacher)

    def training_step(self, micro_batches: list[Batch]) -> None:
        self.parts = {}
        super().training_step(micro_batches)

    def learned(self, batch: Batch) -> Output:
        """Return the student's output whose `loss_sum` has all three terms in it."""
        given = self.inputs(batch)
        every = bool(self.cosine) and self.layers == "every"
        out = self.model(**given, output_hidden_states=every)
        with self.asked(self.teacher):
            told = self.teacher(**{n: t for n, t in given.items() if n != "labels"}, output_hidden_states=every)
        real = real_tokens(batch)
        soft = soft_loss_sum(out.logits[real], told.logits[real], self.temperature)
        cosine = soft.new_zeros(())
        if self.cosine:
            pairs = self._pairs(out, told)
            cosine = torch.stack([cosine_loss_sum(a[real], b[real]) for a, b in pairs]).mean()
        # Each is a sum over tokens, and the step divides by the number of targets.
        of_targets = self.figures.targets / self.figures.tokens
        self._note(hard=out.loss_sum / self.figures.targets, soft=soft / self.figures.tokens,
                   cosine=cosine / self.figures.tokens)  # fmt: skip
        out.loss_sum = self.hard * out.loss_sum + of_targets * (self.soft * soft + self.cosine * cosine)
        return out

    def _pairs(self, out: Output, told: Output) -> list[tuple[Tensor, Tensor]]:
        if self.layers == "last":
            return [(out.last_hidden_state, told.last_hidden_state)]
        own, theirs = out.hidden_states[1:], told.hidden_states[1:]
        return [(own[i], theirs[round((i + 1) * len(theirs) / len(own)) - 1]) for i in range(len(own))]

    def _note(self, **parts: Tensor) -> None:
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, torch.zeros_like(value)) + value.detach()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["teacher"] = self._heard = self._heard or frozen_digest(self.teacher, self.share)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._heard = frozen_digest(self.teacher, self.share)
        if checkpoint.get("teacher") != self._heard:
            raise CheckpointError("the weights teacher.source names are not those this run began to learn from")


def soft_loss_sum(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 * the sum of KL(teacher || student) over rows of logits (rows, vocab) divided by T, in fp32."""
    ours = F.log_softmax(student.float() / temperature, -1)
    theirs = F.log_softmax(teacher.float() / temperature, -1)
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) * temperature**2


def cosine_loss_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the sum of 1 - cos over rows of hidden states (rows, dim), in fp32."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).sum()
