"""Assemblies: towers and heads put together into a whole model with Hugging Face's call."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor, nn

from mlplatform.context import Cache, Context, Output
from mlplatform.errors import DataError
from mlplatform.registry import Named, OneOf, Spec, block


@block("model/single_tower")
class SingleTower(nn.Module):
    """One tower and one head.

    Args:
        head: the head, or the name of one under `heads`; null for the bare tower.
        heads: named alternatives for `head`.
        init: how parameters start.
        hf: how the model reads and writes Hugging Face's files (see mlplatform/interop).
    """

    def __init__(
        self,
        memory_dim: int = 0,
        *,
        trunk: Annotated[Spec, "trunk"],
        head: Annotated[Spec, "head"] | Annotated[OneOf, "heads"] | None = None,
        heads: Annotated[Named, "head"] | None = None,
        init: Annotated[Spec, "init"] | None = None,
        hf: dict | None = None,
    ) -> None:
        super().__init__()
        self.trunk = trunk.build(memory_dim=memory_dim)
        chosen = choose_head(head, heads)
        handed = {"dim": self.trunk.dim, "tower_norm": self.trunk.norm_spec, "table": self.trunk.table}
        handed["feature_dim"] = getattr(self.trunk.input, "feature_dim", 0)
        self.head = chosen.build(**handed) if chosen else None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        output_hidden_states: bool = False,
        logits: bool = True,
        cache: Cache | None = None,
        **batch: Any,
    ) -> Output:
        """Run the model on a batch with HF's names (shapes: batch, length).

        Args:
            input_ids: token numbers. attention_mask: 1 for real tokens, over cached and new tokens.
            labels: targets, -100 for none; adds `loss`, `loss_sum` (fp32) and `loss_count` to the output.
            output_hidden_states: adds `hidden_states`, depth + 1 tensors as in HF.
            logits: False leaves the head's outputs out when labels are given, so that they are never held in memory.
            cache: keys and values of earlier tokens; the new ones are added to it.
            batch: position_ids, token_type_ids, document_ids (packed documents), inputs_embeds; encoder_hidden_states
                and encoder_attention_mask, what layers with a `cross` read; input_values, pixel_values or
                input_features where the input reads those, and what else it reads (mask_time_indices, ...).
        """
        batch = {k: v for k, v in batch.items() if v is not None}
        if input_ids is not None:
            batch["input_ids"] = input_ids
        if attention_mask is not None:
            batch["attention_mask"] = attention_mask
        length, device = self.trunk.input.size(batch)
        context = Context.of(batch, length, device, cache)
        states: list[Tensor] | None = [] if output_hidden_states else None
        x = self.trunk(batch, context, states)
        out = Output(last_hidden_state=x)
        if context.features is not None:
            out.extract_features = context.features
        if states is not None:
            out.hidden_states = tuple(states)
        if cache is not None:
            cache.length += length
        if self.head is not None:
            if labels is None or logits:
                out.update(self.head(x, context))
            if labels is not None:
                add_loss(out, *head_loss(self.head, x, labels, context))
        return out


def choose_head(head: Spec | str | None, heads: Any) -> Spec | None:
    """Return the spec of the chosen head; a string picks from the alternatives."""
    if not isinstance(head, str):
        return head
    data = (heads or {}).get(head)
    return None if data is None else Spec(data, f"heads.{head}", "head")


def head_loss(head: Any, x: Tensor, labels: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Return the head's loss as (sum, count). Raises DataError for a head that has none of its own."""
    if not hasattr(head, "loss"):
        raise DataError(f"the batch has 'labels', but the head '{head.kind}' has no loss; leave them out")
    return head.loss(x, labels, context)


def add_loss(out: Output, total: Tensor, count: Tensor) -> None:
    """Add `loss`, `loss_sum` and `loss_count`; a batch without a target has loss 0."""
    out.loss = total / count.clamp(min=1)
    out.loss_sum, out.loss_count = total, count
