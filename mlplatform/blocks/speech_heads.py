"""Heads of models that read sound: transcripts, classes of whole recordings, and the codes of pretraining."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.blocks.losses import cross_entropy_sum
from mlplatform.context import Context, Output
from mlplatform.errors import DataError, SpecError
from mlplatform.registry import Fraction, Natural, NonNegativeFloat, Positive, PositiveFloat, block


@block("head/ctc")
class CTC(nn.Module):
    """A label or none for each frame; a transcript is scored over all the ways to spread it (Graves et al., 2006).

    Args:
        labels: how many there are, the blank among them; HF's `vocab_size`.
        blank: the number of the blank; HF's `pad_token_id`.
        reduction: HF's `ctc_loss_reduction`. `sum` adds the transcripts of a batch and counts them as one target, so
            the loss grows with the batch; `mean` divides each by its length and counts the transcripts.
        zero_infinity: a transcript longer than its recording has frames costs 0 rather than infinity.
    """

    task = "ctc"

    def __init__(
        self,
        dim: int,
        *,
        labels: Positive = 32,
        blank: Natural = 0,
        reduction: Literal["sum", "mean"] = "sum",
        zero_infinity: bool = False,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        if blank >= labels:
            raise SpecError(f"blank={blank} is none of labels={labels}; it may be 0 to {labels - 1}")
        self.blank, self.reduction, self.zero_infinity = blank, reduction, zero_infinity
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, labels)

    def forward(self, x: Tensor, context: Context) -> Output:
        """(batch, frames, dim) -> logits (batch, frames, labels)"""
        return Output(logits=self.out(self.dropout(x)))

    def loss(self, x: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Labels (batch, length): the transcripts, -100 (or the blank) where there is none."""
        if labels.numel() and (top := int(labels.max())) >= self.out.out_features:
            raise DataError(f"labels hold {top}; this head knows 0 to {self.out.out_features - 1}")
        given = (labels >= 0) & (labels != self.blank)
        lengths = given.sum(-1)
        frames = lengths.new_full((len(x),), x.shape[1]) if context.padding is None else context.padding.sum(-1)
        likely = F.log_softmax(self.forward(x, context).logits, -1, dtype=torch.float32).transpose(0, 1)
        with torch.backends.cudnn.flags(enabled=False):  # as HF: cuDNN's takes other inputs
            losses = F.ctc_loss(likely, labels[given], frames, lengths, self.blank, "none", self.zero_infinity)
        if self.reduction == "sum":
            return losses.sum(), lengths.new_ones(())
        return (losses / lengths.clamp(min=1)).sum(), lengths.new_tensor(len(x))


@block("head/mean_classification")
class MeanClassification(nn.Module):
    """One label for a sequence, from the mean of what a matrix makes of its positions (SUPERB). arXiv:2105.01051

    Args:
        labels: number of classes.
        width: of the vectors that are averaged; HF's `classifier_proj_size`.
    """

    task = "sequence_classification"

    def __init__(self, dim: int, *, labels: Positive = 2, width: Positive = 256) -> None:
        super().__init__()
        self.project = nn.Linear(dim, width)
        self.out = nn.Linear(width, labels)

    def forward(self, x: Tensor, context: Context) -> Output:
        """(batch, length, dim) -> logits (batch, labels)"""
        x = self.project(x)
        if context.padding is None:
            return Output(logits=self.out(x.mean(1)))
        real = context.padding[..., None]
        return Output(logits=self.out(x.masked_fill(~real, 0.0).sum(1) / real.sum(1)))

    def loss(self, x: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Labels: (batch,) class numbers."""
        return cross_entropy_sum(self.forward(x, context).logits, labels)

    def flops(self, rows: int, memory: int) -> tuple[float, float]:
        """Return the FLOPs of the matrix of every position and of the one for the sequence."""
        return 2.0 * rows * self.project.weight.numel() + 2.0 * self.out.weight.numel(), 0.0


@block("head/code_contrast")
class CodeContrast(nn.Module):
    """Tells the code of a hidden frame from those of other frames (wav2vec 2.0's pretraining). arXiv:2006.11477

    A frame's code is one learned vector of each group, end to end: in training one drawn with straight-through
    gradients (arXiv:1611.01144), else the likeliest.

    Args:
        codes: vectors of a group; HF's `num_codevectors_per_group`. groups: HF's `num_codevector_groups`.
        code_dim: width of a frame's whole code; HF's `codevector_dim`.
        width: of the space in which codes and what the tower says are compared; HF's `proj_codevector_dim`.
        temperature: the cosines are divided by it; HF's `contrastive_logits_temperature`.
        diversity: weight of the part of the loss that is 0 when all codes are in use alike.
        softness: temperature of the draw.
        dropout: on the frames the codes are chosen by; HF's `feat_quantizer_dropout`.
    """

    task = "contrast"

    def __init__(
        self,
        dim: int,
        feature_dim: int,
        *,
        codes: Positive = 320,
        groups: Positive = 2,
        code_dim: Positive = 256,
        width: Positive = 256,
        temperature: PositiveFloat = 0.1,
        diversity: NonNegativeFloat = 0.1,
        softness: PositiveFloat = 2.0,
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        if not feature_dim:
            raise SpecError("code_contrast needs an input that makes features of a signal, as waveform does")
        if code_dim % groups:
            raise SpecError(f"code_dim={code_dim} is not a multiple of groups={groups}")
        self.groups, self.softness = groups, softness
        self.temperature, self.diversity = temperature, diversity
        self.dropout = nn.Dropout(dropout)
        self.scores = nn.Linear(feature_dim, groups * codes)
        self.codes = nn.Parameter(torch.empty(groups * codes, code_dim // groups))
        self.project_codes = nn.Linear(code_dim, width)
        self.project_states = nn.Linear(dim, width)

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.codes)

    def forward(self, x: Tensor, context: Context) -> Output:
        """(batch, frames, dim) -> projected_states, projected_quantized_states (batch, frames, width)

        `codevector_perplexity` says how many codes are in use, over the hidden frames where the batch hides some.
        """
        assert context.features is not None
        scores = self.scores(self.dropout(context.features)).unflatten(-1, (self.groups, -1)).float()
        best = F.one_hot(scores.argmax(-1), scores.shape[-1]).float()
        chosen = F.gumbel_softmax(scores, self.softness, hard=True) if self.training else best
        codes = self.codes.unflatten(0, (self.groups, -1))
        quantized = torch.einsum("btgv,gvd->btgd", chosen.to(codes.dtype), codes).flatten(2)
        used = (scores.softmax(-1) if self.training else best).flatten(0, 1)
        if context.hidden is not None:
            used = used[context.hidden.flatten()]
        used = used.mean(0)
        return Output(
            projected_states=self.project_states(x),
            projected_quantized_states=self.project_codes(quantized),
            codevector_perplexity=torch.exp(-torch.xlogy(used, used).sum(-1)).sum(),
        )

    def loss(self, x: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Labels (batch, frames, negatives): which frames' codes a hidden frame's own is told from.

        They are HF's `sampled_negative_indices`: numbers of frames, counted through the whole batch. The hidden
        frames are those of `mask_time_indices`; the count is theirs, HF's loss is the sum.
        """
        if context.hidden is None:
            raise DataError("the batch has no 'mask_time_indices', which say what is to be told")
        out = self.forward(x, context)
        codes = out.projected_quantized_states
        own, others = codes[:, :, None], codes.flatten(0, 1)[labels]
        near = F.cosine_similarity(out.projected_states[:, :, None].float(), torch.cat((own, others), 2).float(), -1)
        near = near / self.temperature
        same = F.pad((own == others).all(-1), (1, 0))
        near = near.masked_fill(same, float("-inf"))[context.hidden]
        told = F.cross_entropy(near, near.new_zeros(len(near), dtype=torch.long), reduction="sum")
        count = context.hidden.sum()
        return told + self.diversity * (1 - out.codevector_perplexity / len(self.codes)) * count, count

    def flops(self, rows: int, memory: int) -> tuple[float, float]:
        """Return the FLOPs of its matrices, the codes among them: choosing is a product with all of them."""
        return 2.0 * rows * sum(p.numel() for p in self.parameters() if p.ndim > 1), 0.0
