"""Texts read beside an image by cross-attention: BLIP's captions, answers and matching."""

from __future__ import annotations

from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.context import Cache, Context, Output
from mlplatform.errors import DataError
from mlplatform.models.assemblies import add_loss
from mlplatform.registry import Spec, block


class Grounded(nn.Module):
    """An image tower, and a text model whose layers read all its vectors by their `cross` attention."""

    def __init__(self, vision: Spec, text: Spec) -> None:
        super().__init__()
        self.vision = vision.build()
        self.text = text.build(memory_dim=self.vision.trunk.dim)

    def look(self, images: Tensor | None, seen: Tensor | None, **options: Any) -> Output:
        """Return the tower's output for images; `seen` (images, patches, width) is an earlier `image_embeds`."""
        if seen is not None:
            return Output(last_hidden_state=seen)
        if images is None:
            raise DataError("the batch has no 'pixel_values'; this model reads images")
        return self.vision(pixel_values=images, **options)

    @property
    def trunk(self) -> Any:
        """The tower that reads the text, by the name it has in `single_tower`."""
        return self.text.trunk

    @property
    def head(self) -> Any:
        """The text model's head."""
        return self.text.head


@block("model/grounded_text")
class GroundedText(Grounded):
    """A text model that reads an image (BLIP). arXiv:2201.12086

    Args:
        vision: a model with one vector per patch.
        text: a tower whose layers have a `cross` (captions); or an encoder-decoder whose encoder's have one, a question
            read with the image, and a decoder that answers it.
    """

    def __init__(
        self,
        *,
        vision: Annotated[Spec, "model"],
        text: Annotated[Spec, "model"],
        init: Annotated[Spec, "init"] | None = None,
        hf: dict | None = None,
    ) -> None:
        super().__init__(vision, text)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        image_embeds: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
        cache: Cache | None = None,
        **batch: Any,
    ) -> Output:
        """Run on texts (batch, length) and as many images (batch, channels, height, width).

        Args:
            image_embeds: an earlier call's, so that decoding looks once. The others are as the text model's.

        Returns:
            The text model's logits and loss, and as with HF the image tower's image_embeds = last_hidden_state and
            hidden_states.
        """
        options = {"interpolate_pos_encoding": interpolate_pos_encoding, "output_hidden_states": output_hidden_states}
        seen = self.look(pixel_values, image_embeds, **options)
        batch |= {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "cache": cache}
        out = self.text(**batch, encoder_hidden_states=seen.last_hidden_state)
        out.update(image_embeds=seen.last_hidden_state, last_hidden_state=seen.last_hidden_state)
        if seen.hidden_states is not None:
            out.hidden_states = seen.hidden_states
        return out


@block("model/matching_towers")
class MatchingTowers(Grounded):
    """Whether a text fits an image: quickly by the cosine of two towers, carefully by the text's reading the image.

    The quick way compares every text with every image, the careful one each text with the image of its row
    (ALBEF, BLIP; arXiv:2107.07651, arXiv:2201.12086).

    Args:
        vision: a model whose head gives `image_embeds`.
        text: one whose head gives `text_embeds` and whose layers have a `cross`, which the quick way goes past.
        match: the head that says of the text's first token, after reading the image, whether they fit.
    """

    def __init__(
        self,
        *,
        vision: Annotated[Spec, "model"],
        text: Annotated[Spec, "model"],
        match: Annotated[Spec, "head"],
        init: Annotated[Spec, "init"] | None = None,
        hf: dict | None = None,
    ) -> None:
        super().__init__(vision, text)
        self.match = match.build(dim=self.text.trunk.dim, tower_norm=self.text.trunk.norm_spec)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        image_embeds: Tensor | None = None,
        use_itm_head: bool = True,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
    ) -> Output:
        """Score texts (batch, length) beside images (batch, channels, height, width).

        Args:
            labels: (batch,) 1 where text and image fit, 0 where not: adds the loss of the careful way.
            use_itm_head: the careful way; False for the quick one, with any number of images.
            image_embeds: an earlier call's `last_hidden_state`, for the careful way.

        Returns:
            itm_score: logits (batch, 2) of not fitting and fitting, or the cosines (images, texts);
            question_embeds: the text's last hidden states; last_hidden_state, hidden_states: the image tower's.
        """
        options = {"interpolate_pos_encoding": interpolate_pos_encoding, "output_hidden_states": output_hidden_states}
        seen = self.look(pixel_values, image_embeds if use_itm_head else None, **options)
        read = {"encoder_hidden_states": seen.last_hidden_state} if use_itm_head else {}
        text = self.text(input_ids=input_ids, attention_mask=attention_mask, **read)
        out = Output(last_hidden_state=seen.last_hidden_state, question_embeds=text.last_hidden_state)
        if seen.hidden_states is not None:
            out.hidden_states = seen.hidden_states
        if not use_itm_head:
            if labels is not None:
                raise DataError("labels are of the careful way; leave them out with use_itm_head=False")
            image, words = F.normalize(seen.image_embeds, dim=-1), F.normalize(text.text_embeds, dim=-1)
            out.itm_score = image @ words.t()
            return out
        context = Context.of({"attention_mask": attention_mask}, input_ids.shape[1], input_ids.device)
        out.itm_score = self.match(text.last_hidden_state, context).logits
        if labels is not None:
            add_loss(out, *self.match.loss(text.last_hidden_state, labels, context))
        return out
