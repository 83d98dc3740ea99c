"""Two towers, the second of which reads the first: T5, BART, Whisper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from torch import Tensor, nn

from mlplatform.context import Cache, Context, Output
from mlplatform.errors import DataError
from mlplatform.models.assemblies import add_loss, choose_head, head_loss
from mlplatform.registry import Named, Natural, OneOf, Spec, block

DECODER = "decoder_"
"""The batch's keys for the decoder start with this: decoder_input_ids, decoder_attention_mask, ..."""


@block("model/encoder_decoder")
class EncoderDecoder(nn.Module):
    """An encoder, a decoder whose layers have a `cross` attention, and a head on the decoder.

    Args:
        start_token: what the decoder reads first; HF's `decoder_start_token_id`. null: labels begin with it, and each
            token of theirs is scored on the next (BLIP).
        pad_token: stands for -100 where labels become decoder inputs.
        head, heads, init, hf: as in `single_tower`.
    """

    def __init__(
        self,
        memory_dim: int = 0,
        *,
        encoder: Annotated[Spec, "trunk"],
        decoder: Annotated[Spec, "trunk"],
        head: Annotated[Spec, "head"] | Annotated[OneOf, "heads"] | None = None,
        heads: Annotated[Named, "head"] | None = None,
        start_token: Natural | None = 0,
        pad_token: Natural = 0,
        init: Annotated[Spec, "init"] | None = None,
        hf: dict | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder.build(memory_dim=memory_dim)
        self.decoder = decoder.build(memory_dim=self.encoder.dim, shared=self.encoder.input)
        self.start_token, self.pad_token = start_token, pad_token
        chosen = choose_head(head, heads)
        handed = {"dim": self.decoder.dim, "tower_norm": self.decoder.norm_spec, "table": self.decoder.table}
        self.head = chosen.build(**handed) if chosen else None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        encoder_outputs: Output | None = None,
        output_hidden_states: bool = False,
        logits: bool = True,
        cache: Cache | None = None,
        **batch: Any,
    ) -> Output:
        """Run both towers on a batch with HF's names.

        Args:
            labels: (batch, length) targets; shifted right they are the decoder's input when none is given.
            encoder_outputs: an earlier call's output, whose `encoder_last_hidden_state` is used again.
            cache: of the decoder. The other arguments are as in `single_tower`.
        """
        batch |= {"input_ids": input_ids, "attention_mask": attention_mask}
        batch = {k: v for k, v in batch.items() if v is not None}
        out = self.encode(batch, output_hidden_states) if encoder_outputs is None else Output(encoder_outputs)
        inputs = {key.removeprefix(DECODER): v for key, v in batch.items() if key.startswith(DECODER)}
        if not inputs.keys() & {"input_ids", "inputs_embeds"}:
            if labels is None:
                raise DataError("the batch has no 'decoder_input_ids' and no 'labels' to make them from")
            inputs["input_ids"] = self.shift_right(labels)
        length, device = self.decoder.input.size(inputs)
        context = Context.of(inputs, length, device, cache)
        context.memory, context.memory_padding = out.encoder_last_hidden_state, out.encoder_padding
        context.aligned = self.start_token is not None
        states: list[Tensor] | None = [] if output_hidden_states else None
        x = self.decoder(inputs, context, states)
        out.last_hidden_state = x
        if states is not None:
            out.decoder_hidden_states = tuple(states)
        if cache is not None:
            cache.length += length
        if self.head is not None:
            if labels is None or logits:
                out.update(self.head(x, context))
            if labels is not None:
                add_loss(out, *head_loss(self.head, x, labels, context))
        return out

    @property
    def trunk(self) -> nn.Module:
        """The tower that reads the input, by the name it has in `single_tower`."""
        return self.encoder

    def encode(self, batch: Mapping[str, Any], output_hidden_states: bool = False) -> Output:
        """Run the encoder alone: `encoder_last_hidden_state`, and `encoder_padding` (batch, length) or None."""
        length, device = self.encoder.input.size(batch)
        context = Context.of(batch, length, device)
        states: list[Tensor] | None = [] if output_hidden_states else None
        x = self.encoder(batch, context, states)
        out = Output(encoder_last_hidden_state=x, encoder_padding=context.padding)
        if states is not None:
            out.encoder_hidden_states = tuple(states)
        return out

    def shift_right(self, labels: Tensor) -> Tensor:
        """Return decoder inputs: the start token, then all labels but the last, -100 as the padding token."""
        shifted = labels
        if self.start_token is not None:
            shifted = labels.roll(1, -1)
            shifted[:, 0] = self.start_token
        return shifted.masked_fill(shifted == -100, self.pad_token)
