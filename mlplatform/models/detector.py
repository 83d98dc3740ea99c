"""An image network, an encoder over its map, a decoder of slots that looks at it: DETR."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.context import Context, Output
from mlplatform.errors import DataError, SpecError
from mlplatform.models.assemblies import add_loss, choose_head
from mlplatform.registry import Named, OneOf, Spec, block

log = logging.getLogger(__name__)


@block("model/detector")
class Detector(nn.Module):
    """Finds a set of objects on an image at once. arXiv:2005.12872

    Args:
        backbone: a model whose tower gives maps, such as `timm`; its batch norms are frozen, as images of a detector
            are too few at a time for statistics.
        encoder: a tower whose input is a `feature_map`; decoder: one with slots as its input and a `cross`.
        head, heads, init, hf: as in `single_tower`.
    """

    def __init__(
        self,
        *,
        backbone: Annotated[Spec, "model"],
        encoder: Annotated[Spec, "trunk"],
        decoder: Annotated[Spec, "trunk"],
        head: Annotated[Spec, "head"] | Annotated[OneOf, "heads"] | None = None,
        heads: Annotated[Named, "head"] | None = None,
        init: Annotated[Spec, "init"] | None = None,
        hf: dict | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone.build()
        network = getattr(self.backbone, "trunk", None)
        if not hasattr(network, "maps"):
            raise SpecError("backbone: this model gives no feature maps; take one with `trunk: {kind: timm}`")
        network.freeze_norms()  # type: ignore[union-attr, operator]
        if any(type(module).__name__ == "FrozenBatchNormAct2d" for module in self.backbone.modules()):
            log.warning(
                "the batch norms of the backbone hold activations, which Hugging Face's detectors leave out when they "
                "freeze them: with the same weights they compute something else"
            )
        self.encoder = encoder.build(shared=network)
        self.decoder = decoder.build(memory_dim=self.encoder.dim)
        chosen = choose_head(head, heads)
        self.head = (
            chosen.build(dim=self.decoder.dim, tower_norm=self.decoder.norm_spec, table=None) if chosen else None
        )

    @property
    def trunk(self) -> Any:
        """The tower that reads the image, by the name it has in `single_tower`."""
        return self.backbone.trunk

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        *,
        decoder_attention_mask: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> Output:
        """Run on images (batch, channels, height, width).

        Args:
            pixel_mask: (batch, height, width), 1 within each image, 0 where it was padded to the batch's size.
            labels: for each image `class_labels` (n,) and `boxes` (n, 4): centre x, centre y, width, height, 0 to 1.
            decoder_attention_mask: (batch, slots), 0 for slots no other looks at.
            decoder_inputs_embeds: (batch, slots, dim), what slots start with instead of zero.
            output_hidden_states: adds `encoder_hidden_states` and `decoder_hidden_states`.

        Returns:
            logits and pred_boxes of the head, last_hidden_state of the slots, encoder_last_hidden_state; with labels
            `loss`, and its parts in `loss_dict`.
        """
        pixels = {} if pixel_values is None else {"pixel_values": pixel_values}
        _, device = self.trunk.input.size(pixels)
        grid, mask = self._map(pixels["pixel_values"], pixel_mask)
        read = Context(torch.arange(grid.shape[-2] * grid.shape[-1], device=device)[None])
        read.padding = None if mask is None else mask.flatten(1)
        seen: list[Tensor] | None = [] if output_hidden_states else None
        memory = self.encoder({"feature_map": grid, "feature_mask": mask}, read, seen)

        batch: dict[str, Any] = {"attention_mask": decoder_attention_mask, "inputs_embeds": decoder_inputs_embeds}
        context = Context.of(batch, self.decoder.input.size(batch)[0], device)
        context.memory, context.memory_padding, context.memory_places = memory, read.padding, read.places
        states: list[Tensor] = []
        x = self.decoder(batch, context, states)
        out = Output(last_hidden_state=x, encoder_last_hidden_state=memory)
        if seen is not None:
            out.encoder_hidden_states, out.decoder_hidden_states = tuple(seen), tuple(states)
        if self.head is not None:
            out.update(self.head(x, context))
            if labels is not None:
                self._add_losses(out, states, labels, context)
        return out

    def _map(self, pixels: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the backbone's map (batch, width, rows, columns) and which of its positions are within the image."""
        grid = self.trunk.maps(pixels)
        if pixel_mask is None:
            return grid, None
        if pixel_mask.shape != (len(pixels), *pixels.shape[-2:]):
            raise DataError(f"pixel_mask is {list(pixel_mask.shape)}, the images are {list(pixels.shape)}")
        return grid, F.interpolate(pixel_mask[None].float(), size=grid.shape[-2:])[0].bool()

    def _add_losses(self, out: Output, states: list[Tensor], labels: Any, context: Context) -> None:
        head: Any = self.head
        losses = head.losses(out, labels)
        if head.auxiliary:
            norm = self.decoder.final_norm or nn.Identity()
            out.auxiliary_outputs = [dict(head(norm(state), context)) for state in states[1 : len(self.decoder.layers)]]
            for number, earlier in enumerate(out.auxiliary_outputs):
                more = head.losses(Output(earlier), labels)
                losses |= {f"{name}_{number}": loss for name, loss in more.items()}
        out.loss_dict = losses
        add_loss(out, *head.total(losses, labels))
