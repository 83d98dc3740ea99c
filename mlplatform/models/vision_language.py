"""A language model that reads images: LLaVA, FastVLM."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from mlplatform.context import Cache, Output
from mlplatform.errors import DataError, SpecError
from mlplatform.registry import Natural, Spec, block


@block("model/vision_language")
class VisionLanguage(nn.Module):
    """An image tower, a projector, and a language model in whose input image tokens become image features.

    Args:
        vision: a model whose tower gives one vector per patch. language: any causal or encoder-decoder model.
        projector: from the tower's width to the language model's.
        image_token: the token the features replace, one each; HF's `image_token_index`.
        feature_layer: which hidden states are read, counted as HF's `vision_feature_layer` (-1 the last); of several
            the vectors are put end to end (arXiv:2312.07533).
        drop: special tokens at the front that are no patches; 1 for HF's `default` selection, 0 for `full`.
    """

    def __init__(
        self,
        *,
        vision: Annotated[Spec, "model"],
        language: Annotated[Spec, "model"],
        projector: Annotated[Spec, "mlp"],
        image_token: Natural,
        feature_layer: int | list[int] = -2,
        drop: Natural = 1,
        init: Annotated[Spec, "init"] | None = None,
        hf: dict | None = None,
    ) -> None:
        super().__init__()
        self.vision = vision.build()
        self.language = language.build()
        self.image_token, self.drop = image_token, drop
        self.feature_layers = [feature_layer] if isinstance(feature_layer, int) else list(feature_layer)
        width = self.vision.trunk.dim * len(self.feature_layers)
        self.projector = projector.build(dim=width, out_dim=self.language.trunk.dim)
        table = self.language.trunk.table
        if table is None:
            raise SpecError("language: this model has no token table for the image features to join")
        if image_token >= table.num_embeddings:
            raise SpecError(
                f"image_token={image_token} is no token of the language model's vocabulary of {table.num_embeddings}"
            )

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        cache: Cache | None = None,
        **options: Any,
    ) -> Output:
        """Run on tokens (batch, length) with as many image tokens as the images (n, channels, h, w) have patches.

        Returns the language model's output, and image_hidden_states (n * patches, width): what took their places.
        """
        if input_ids is None:
            raise DataError("the batch has no 'input_ids'; this model reads tokens")
        reader = self.language.trunk.input
        x = reader.table(input_ids) if reader.scale_given else reader.rows(input_ids)
        features = None
        if pixel_values is not None:
            features = self.image_features(pixel_values)
            x = self._place(x, input_ids, features)
        elif (cache is None or not cache.length) and bool((input_ids == self.image_token).any()):
            raise DataError("the text has image tokens and the batch no 'pixel_values' to take their places")
        out = self.language(inputs_embeds=x, attention_mask=attention_mask, labels=labels, cache=cache, **options)
        if features is not None:
            out.image_hidden_states = features.flatten(0, 1)
        return out

    @property
    def trunk(self) -> Any:
        """The language model's tower, by the name it has in `single_tower`: what reads tokens here."""
        return self.language.trunk

    @property
    def head(self) -> Any:
        """The language model's head."""
        return self.language.head

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """(images, channels, height, width) -> (images, patches, width of the language model)"""
        states = self.vision(pixel_values=pixel_values, output_hidden_states=True).hidden_states
        return self.projector(torch.cat([states[layer][:, self.drop :] for layer in self.feature_layers], -1))

    def _place(self, x: Tensor, tokens: Tensor, features: Tensor) -> Tensor:
        places = tokens == self.image_token
        wanted, given = int(places.sum()), features.shape[0] * features.shape[1]
        if wanted != given:
            raise DataError(f"the text has {wanted} image tokens, the images have {given} patches")
        return x.masked_scatter(places[..., None], features.to(x.dtype))
