"""The tower: an input, a stack of layers, a final norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from mlplatform.context import Context
from mlplatform.registry import Exceptions, Positive, Spec, block, expand


@block("trunk/transformer")
class Transformer(nn.Module):
    """input -> depth layers -> final norm.

    Args:
        dim: width of the hidden states; every block below is handed it.
        depth: number of layers.
        context_length: longest sequence; HF's `max_position_embeddings`.
        norm: the kind of norm, stated once; `final_norm: true`, `input.norm: true`, `qk_norm: true` mean this one.
        exceptions: layers that differ: each item is merged over `layer` for the `layers` it names.
        position_bias: what every layer's attention scores get for the distance of query and key.
        final_norm: a norm after the last layer; `every` for the same one after each layer too (HF's DETR, when it has
            `auxiliary_loss`).
        normed_states: the last of `hidden_states` is what the final norm returns (Llama, BERT); false for what it
            is given (ViT, CLIP, SigLIP).
    """

    def __init__(
        self,
        memory_dim: int = 0,
        shared: nn.Module | None = None,
        *,
        dim: Positive,
        depth: Positive,
        context_length: Positive,
        norm: Annotated[Spec, "norm"],
        input: Annotated[Spec, "input"],
        layer: Annotated[Spec, "layer"],
        exceptions: Annotated[Exceptions, "layer"] = (),  # type: ignore[assignment]
        position_bias: Annotated[Spec, "position_bias"] | None = None,
        final_norm: bool | Literal["every"] = False,
        normed_states: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.depth, self.context_length, self.norm_spec = dim, depth, context_length, norm
        handed: dict[str, Any] = {"dim": dim, "tower_norm": norm, "context_length": context_length}
        self.input = input.build(**handed, shared=shared)
        heads = layer.child("attention")["heads"]
        self.position_bias = position_bias.build(heads=heads) if position_bias else None
        specs = expand(layer.data, exceptions, depth)
        self.layers = nn.ModuleList(
            Spec(data, layer.path, layer.group).build(**handed, memory_dim=memory_dim, index=i)
            for i, data in enumerate(specs)
        )
        self.final_norm = norm.build(dim=dim) if final_norm else None
        self.norm_every = final_norm == "every"
        self.normed_states = normed_states
        self.checkpointed = False
        """Whether layers are computed again in the backward pass instead of being kept."""
        self.kept: frozenset[int] = frozenset()
        """Numbers of layers that are kept all the same."""
        self.contexts: Callable[[], Any] = noop_context_fn
        """What `torch.utils.checkpoint` runs them in: says which of their results are kept."""

    @property
    def table(self) -> nn.Module | None:
        """The token table, which a head may share."""
        return getattr(self.input, "table", None)

    def forward(self, batch: Mapping[str, Tensor], context: Context, states: list[Tensor] | None = None) -> Tensor:
        """Return the last hidden states (batch, length, dim).

        Args:
            states: when given, receives the input of every layer and, last, what is returned (with `normed_states`
                false, before the norm): HF's `hidden_states`.
        """
        x = self.input(batch, context)
        if self.position_bias is not None:
            context.bias = self.position_bias(context, x.shape[1])
        context.recomputed = self.checkpointed and self.training
        raw = x
        for number, layer in enumerate(self.layers):
            if states is not None:
                states.append(raw)
            x = raw = self._through(number, layer, x, context)
            if self.norm_every and self.final_norm is not None:
                x = self.final_norm(x)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if states is not None:
            states.append(x if self.normed_states else raw)
        return x

    def _through(self, number: int, layer: nn.Module, x: Tensor, context: Context) -> Tensor:
        if context.recomputed and number not in self.kept:
            run: Any = checkpoint(layer, x, context, use_reentrant=False, context_fn=self.contexts)
            return run
        return layer(x, context)
