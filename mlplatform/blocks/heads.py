"""Heads: what a tower's last hidden states become. Each has `forward -> Output` and `loss -> (sum, count)`."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.blocks.activations import ACTIVATIONS
from mlplatform.blocks.losses import IGNORED, cross_entropy_sum, linear_cross_entropy_sum
from mlplatform.context import Context, Output
from mlplatform.errors import DataError, SpecError
from mlplatform.registry import Activation, Fraction, Natural, Positive, PositiveFloat, Spec, block


class VocabularyLinear(nn.Module):
    """Logits over the vocabulary, by a matrix of its own or by the token table."""

    splits: ClassVar[dict[str, str]] = {"": "vocabulary"}

    def __init__(self, dim: int, table: nn.Embedding | None, tied: bool, bias: bool) -> None:
        super().__init__()
        if table is None:
            raise SpecError("this head needs an input with a token table")
        # A tuple keeps the table out of this module's own parameters: a tied weight has one name and is saved once.
        self._table = (table,) if tied else None
        self.out = None if tied else nn.Linear(dim, table.num_embeddings, bias=bias)
        self.bias = nn.Parameter(torch.zeros(table.num_embeddings)) if tied and bias else None

    @property
    def weights(self) -> tuple[Tensor, Tensor | None]:
        """Return (weight (vocab, dim), bias (vocab,) or None)."""
        if self.out is not None:
            return self.out.weight, self.out.bias
        assert self._table is not None
        return self._table[0].weight, self.bias

    def project(self, x: Tensor) -> Tensor:
        """(..., dim) -> logits (..., vocab)"""
        return F.linear(x, *self.weights)

    def cross_entropy(self, rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (rows, dim), labels (rows,), -100 for no target -> (sum of the losses in fp32, number of targets)"""
        return linear_cross_entropy_sum(rows, *self.weights, labels)

    def reset_parameters(self) -> None:
        if self.bias is not None:
            nn.init.zeros_(self.bias)


@block("head/lm_head")
class LMHead(VocabularyLinear):
    """Logits of the next token.

    Args:
        tied: the matrix is the token table; HF's `tie_word_embeddings`.
        scale: factor on the hidden states; `inverse_sqrt_dim` for dim ** -0.5 (T5).
        softcap: logits become softcap * tanh(logits / softcap) (Gemma 2); HF's `final_logit_softcapping`.
    """

    task = "causal_lm"

    def __init__(
        self,
        dim: int,
        table: nn.Module | None,
        *,
        tied: bool = False,
        bias: bool = False,
        scale: PositiveFloat | Literal["inverse_sqrt_dim"] = 1.0,
        softcap: PositiveFloat | None = None,
    ) -> None:
        super().__init__(dim, table, tied, bias)  # type: ignore[arg-type]
        self.scale = dim**-0.5 if scale == "inverse_sqrt_dim" else float(scale)
        self.softcap = softcap

    def _logits(self, x: Tensor) -> Tensor:
        logits = self.project(x)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def forward(self, x: Tensor, context: Context) -> Output:
        """(batch, length, dim) -> logits (batch, length, vocab)"""
        return Output(logits=self._logits(x if self.scale == 1.0 else x * self.scale))

    def loss(self, x: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Labels (batch, length): the input tokens themselves, position t scored on label t + 1, unless aligned."""
        x = x if self.scale == 1.0 else x * self.scale
        if not context.aligned:
            x, labels = x[:, :-1], labels[:, 1:]
        if self.softcap is not None:
            return cross_entropy_sum(self._logits(x), labels)
        return self.cross_entropy(x.flatten(0, 1), labels.flatten())


@block("head/masked_lm_head")
class MaskedLMHead(VocabularyLinear):
    """Logits of the token at each position: dense, activation, norm, then the vocabulary. arXiv:1810.04805"""

    task = "masked_lm"

    def __init__(
        self,
        dim: int,
        tower_norm: Spec,
        table: nn.Module | None,
        *,
        activation: Activation = "gelu",
        tied: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__(dim, table, tied, bias)  # type: ignore[arg-type]
        self.dense = nn.Linear(dim, dim)
        self.norm = tower_norm.build(dim=dim)
        self.activation = ACTIVATIONS[activation]

    def _transform(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x)))

    def forward(self, x: Tensor, context: Context) -> Output:
        """(batch, length, dim) -> logits (batch, length, vocab)"""
        return Output(logits=self.project(self._transform(x)))

    def loss(self, x: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Labels (batch, length) score the token at the same position."""
        rows, targets = x.flatten(0, 1), labels.flatten()
        chosen = targets != IGNORED
        return self.cross_entropy(self._transform(rows[chosen]), targets[chosen])


@block("head/dense_lm_head")
class DenseLMHead(MaskedLMHead):
    """`masked_lm_head`, read as the next token's logits: BERT as a decoder, BLIP. Fields as there."""

    task = "causal_lm"

    def loss(self, x: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Labels (batch, length): the input tokens themselves, position t scored on label t + 1, unless aligned."""
        if not context.aligned:
            x, labels = x[:, :-1], labels[:, 1:]
        return super().loss(x, labels, context)


@block("head/pooler")
class Pooler(nn.Module):
    """`pooler_output`: dense and activation on the first token. No loss of its own."""

    task = "features"

    def __init__(self, dim: int, *, activation: Activation = "tanh") -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, context: Context) -> Output:
        """(batch, length, dim) -> pooler_output (batch, dim)"""
        return Output(pooler_output=self.activation(self.dense(x[:, 0])))


@block("head/sequence_classification")
class SequenceClassification(nn.Module):
    """One label for a sequence, from its first or its last token, or from the mean of all.

    Args:
        labels: number of classes (of numbers, for `regression`).
        pool: the token that stands for the sequence; `last` is the last one that is not padding, `mean` the mean of
            all that are not (of an image network's map, over its places).
        activation: of a dense layer before the classifier (BERT's pooler: tanh); null for none.
        problem: HF's `problem_type`; `multi_label` takes labels (batch, labels) of 0 and 1.
    """

    task = "sequence_classification"

    def __init__(
        self,
        dim: int,
        *,
        labels: Positive = 2,
        pool: Literal["first", "last", "mean"] = "first",
        activation: Activation | None = "tanh",
        bias: bool = True,
        dropout: Fraction = 0.0,
        problem: Literal["single_label", "multi_label", "regression"] = "single_label",
    ) -> None:
        super().__init__()
        self.pool, self.problem = pool, problem
        self.dense = nn.Linear(dim, dim) if activation else None
        self.activation = ACTIVATIONS[activation or "linear"]
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, labels, bias=bias)

    def _pooled(self, x: Tensor, context: Context) -> Tensor:
        if self.pool == "first":
            return x[:, 0]
        if context.padding is None:
            return x.mean(1) if self.pool == "mean" else x[:, -1]
        real = context.padding[:, -x.shape[1] :]
        if self.pool == "mean":
            return (x * real.unsqueeze(-1)).sum(1) / real.sum(1, keepdim=True)
        places = torch.arange(x.shape[1], device=x.device) * real
        return x[torch.arange(len(x), device=x.device), places.argmax(-1)]

    def forward(self, x: Tensor, context: Context) -> Output:
        """(batch, length, dim) -> logits (batch, labels)"""
        pooled = self._pooled(x, context)
        if self.dense is not None:
            pooled = self.activation(self.dense(pooled))
        return Output(logits=self.out(self.dropout(pooled)))

    def loss(self, x: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Labels: (batch,) class numbers, (batch, labels) of 0 and 1, or (batch,) numbers, by `problem`."""
        logits = self.forward(x, context).logits.float()
        if self.problem == "single_label":
            return cross_entropy_sum(logits, labels)
        target = labels.float().view_as(logits)
        measure = F.mse_loss if self.problem == "regression" else F.binary_cross_entropy_with_logits
        return measure(logits, target, reduction="sum"), torch.tensor(target.numel(), device=x.device)


@block("head/projection")
class Projection(nn.Module):
    """One vector for the whole input, in a space several towers share (CLIP, SigLIP's text). arXiv:2103.00020

    Args:
        width: of the shared space; HF's `projection_dim`; null for no projection.
        output: the projected vector's name; `pooler_output` puts it in the place of what was projected.
        pool: `first` token, `last` position, or the first `end` token of the text.
        end_token: which token that is; HF's `eos_token_id`. Files that say 2 mean the highest token number.
        norm: the tower's norm on the pooled vector.
    """

    task = "features"

    def __init__(
        self,
        dim: int,
        tower_norm: Spec,
        *,
        width: Positive | None,
        output: Literal["pooler_output", "text_embeds", "image_embeds"] = "pooler_output",
        pool: Literal["first", "last", "end"] = "first",
        end_token: Natural = 2,
        norm: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.output, self.pool, self.end_token = output, pool, end_token
        self.norm = tower_norm.build(dim=dim) if norm else None
        self.out = nn.Linear(dim, width, bias=bias) if width else None

    def forward(self, x: Tensor, context: Context) -> Output:
        """(batch, length, dim) -> pooler_output (batch, dim) and `output` (batch, width)"""
        pooled = x[:, -1] if self.pool == "last" else x[:, 0]
        if self.pool == "end":
            if context.tokens is None:
                raise SpecError("pool=end needs an input of tokens")
            places = context.tokens if self.end_token == 2 else (context.tokens == self.end_token).int()
            pooled = x[torch.arange(len(x), device=x.device), places.argmax(-1)]
        if self.norm is not None:
            pooled = self.norm(pooled)
        out = Output(pooler_output=pooled)
        if self.out is not None:
            out[self.output] = self.out(pooled)
        return out


@block("head/pixels")
class Pixels(nn.Module):
    """`reconstruction`: the pixels of every patch, by one matrix from its vector (SimMIM). arXiv:2111.09886

    Args:
        patch: side of what a vector becomes, in pixels; HF's `encoder_stride`.
        special: tokens before the patches, which are no pixels.
    """

    task = "masked_image"

    def __init__(self, dim: int, *, patch: Positive, channels: Positive = 3, special: Natural = 1) -> None:
        super().__init__()
        self.patch_size, self.special = patch, special
        self.out = nn.Linear(dim, channels * patch**2)

    def forward(self, x: Tensor, context: Context) -> Output:
        """(batch, special + rows * rows, dim) -> reconstruction (batch, channels, rows * patch, rows * patch)"""
        patches = self.out(x[:, self.special :]).transpose(1, 2)
        side = math.isqrt(patches.shape[-1])
        if side**2 != patches.shape[-1]:
            raise DataError(f"{patches.shape[-1]} patches are no square; masked images are square ones")
        return Output(reconstruction=F.pixel_shuffle(patches.unflatten(-1, (side, side)), self.patch_size))

    def loss(self, x: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Labels (batch, channels, height, width): the pixels, NaN where none is asked for; absolute differences."""
        asked = ~labels.isnan()
        gaps = (self.forward(x, context).reconstruction.float() - labels.nan_to_num().float()).abs()
        return torch.where(asked, gaps, 0.0).sum(), asked.sum()

    def flops(self, rows: int, memory: int) -> tuple[float, float]:
        """Return the FLOPs of its matrix, which special tokens don't go through, and none of attention."""
        return 2.0 * (rows - self.special) * self.out.weight.numel(), 0.0


@block("head/token_classification")
class TokenClassification(nn.Module):
    """One label for every token."""

    task = "token_classification"

    def __init__(self, dim: int, *, labels: Positive = 2, dropout: Fraction = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, labels)

    def forward(self, x: Tensor, context: Context) -> Output:
        """(batch, length, dim) -> logits (batch, length, labels)"""
        return Output(logits=self.out(self.dropout(x)))

    def loss(self, x: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Labels (batch, length), -100 where there is none."""
        return cross_entropy_sum(self.forward(x, context).logits, labels)


@block("head/span")
class Span(nn.Module):
    """Where an answer starts and ends: two logits for every token (extractive question answering)."""

    task = "question_answering"

    def __init__(self, dim: int, *, dropout: Fraction = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, 2)

    def forward(self, x: Tensor, context: Context) -> Output:
        """(batch, length, dim) -> start_logits and end_logits (batch, length)"""
        start, end = self.out(self.dropout(x)).unbind(-1)
        return Output(start_logits=start, end_logits=end)

    def loss(self, x: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Labels (batch, 2): the token numbers of the answer's start and end, -100 for an answer outside."""
        out = self.forward(x, context)
        return cross_entropy_sum(torch.stack((out.start_logits, out.end_logits), 1), labels)


@block("head/joint")
class Joint(nn.Module):
    """Several heads on one tower: outputs are named `<part>_logits`, as HF's pretraining models name them."""

    task = "joint"

    def __init__(
        self, dim: int, tower_norm: Spec, table: nn.Module | None, *, parts: dict[str, Annotated[Spec, "head"]]
    ) -> None:
        super().__init__()
        built = {name: part.build(dim=dim, tower_norm=tower_norm, table=table) for name, part in parts.items()}
        self.parts = nn.ModuleDict(built)

    def forward(self, x: Tensor, context: Context) -> Output:
        """(batch, length, dim) -> every part's outputs"""
        outputs = Output()
        for name, part in self.parts.items():
            for key, value in part(x, context).items():
                outputs[f"{name}_{key}" if key == "logits" else key] = value
        return outputs
