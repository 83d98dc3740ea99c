"""Two towers that meet in one space: CLIP, SigLIP."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.context import Output
from mlplatform.errors import DataError, SpecError
from mlplatform.models.assemblies import add_loss
from mlplatform.registry import Spec, block


@block("model/dual_tower")
class DualTower(nn.Module):
    """A text and an image tower whose heads give vectors of one width; pairs are scored by the cosine. arXiv:2103.00020

    A tower's vector is its head's `text_embeds` or `image_embeds`, or its `pooler_output` where it has none (SigLIP).

    Args:
        logit_scale: log of the factor on the cosines at the start; HF's `logit_scale_init_value`.
        logit_bias: of the scores at the start (SigLIP), null for none.
        loss: `softmax` over each row and column (CLIP); `sigmoid` of each pair by itself (SigLIP, arXiv:2303.15343).
        init, hf: as in `single_tower`.
    """

    def __init__(
        self,
        *,
        text: Annotated[Spec, "model"],
        vision: Annotated[Spec, "model"],
        logit_scale: float = 2.6592,
        logit_bias: float | None = None,
        loss: Literal["softmax", "sigmoid"] = "softmax",
        init: Annotated[Spec, "init"] | None = None,
        hf: dict | None = None,
    ) -> None:
        super().__init__()
        self.text = text.build()
        self.vision = vision.build()
        self.start = (logit_scale, logit_bias)
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale))
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor(logit_bias))
        self.loss = loss

    def reset_parameters(self) -> None:
        nn.init.constant_(self.logit_scale, self.start[0])
        if self.logit_bias is not None:
            nn.init.constant_(self.logit_bias, self.start[1] or 0.0)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        interpolate_pos_encoding: bool = False,
        output_hidden_states: bool = False,
        return_loss: bool = False,
        **batch: Any,
    ) -> Output:
        """Score every text (texts, length) against every image (images, channels, height, width).

        Returns:
            text_embeds and image_embeds of unit length, logits_per_text (texts, images), logits_per_image, and with
            `return_loss` the contrastive loss of a batch whose n-th text belongs to its n-th image. The towers' own
            outputs are text_model_output and vision_model_output, in which `pooler_output` is, as with HF, the vector
            before its length becomes one. Either input may be left out.
        """
        out = Output()
        if input_ids is None and pixel_values is None:
            raise DataError("the batch has neither 'input_ids' nor 'pixel_values'; this model reads both or either")
        if input_ids is not None:
            batch |= {"input_ids": input_ids, "attention_mask": attention_mask}
            out.text_model_output = self.text(**batch, output_hidden_states=output_hidden_states)
            out.text_embeds = _unit(out.text_model_output, "text_embeds")
        if pixel_values is not None:
            images = {"pixel_values": pixel_values, "interpolate_pos_encoding": interpolate_pos_encoding}
            out.vision_model_output = self.vision(**images, output_hidden_states=output_hidden_states)
            out.image_embeds = _unit(out.vision_model_output, "image_embeds")
        if input_ids is not None and pixel_values is not None:
            scores = out.text_embeds @ out.image_embeds.t() * self.logit_scale.exp()
            out.logits_per_text = scores if self.logit_bias is None else scores + self.logit_bias
            out.logits_per_image = out.logits_per_text.t()
            if return_loss:
                if len(scores) != scores.shape[1]:
                    raise DataError(
                        f"{len(scores)} texts and {scores.shape[1]} images are no pairs; the loss needs pairs"
                    )
                vectors = out.text_embeds, out.image_embeds
                total = pair_loss(*vectors, self.logit_scale, self.logit_bias, self.loss, 0, len(scores))
                add_loss(out, total, torch.tensor(len(scores), device=scores.device))
        elif return_loss:
            raise DataError("the loss needs both 'input_ids' and 'pixel_values'")
        return out


def _unit(tower: Output, name: str) -> Tensor:
    """Return a tower's vector, its length made one."""
    vector = tower.pop(name, None)
    if vector is None and tower.pooler_output is None:
        raise SpecError(f"the tower's head gives neither {name} nor pooler_output; take a head 'projection'")
    tower.pooler_output = tower.pooler_output if vector is None else vector
    return F.normalize(tower.pooler_output, dim=-1)


def pair_loss(
    texts: Tensor, images: Tensor, scale: Tensor, bias: Tensor | None, kind: str, start: int, stop: int
) -> Tensor:
    """Return the loss of the pairs start..stop-1 among all pairs, whose vectors (pairs, width) have unit length.

    softmax: the cross-entropy of each text among the images, and of each image among the texts, halved. sigmoid: -log
    sigmoid of each score of a text, its sign changed but for its own image. Summed over all pairs both are the whole
    loss; only stop - start rows of scores are held.
    """

    def scores(own: Tensor, others: Tensor) -> Tensor:
        found = own[start:stop] @ others.t() * scale.exp()
        return (found if bias is None else found + bias).float()

    places = torch.arange(start, stop, device=texts.device)
    if kind == "softmax":
        both = (scores(texts, images), scores(images, texts))
        return sum(F.cross_entropy(one, places, reduction="sum") for one in both) / 2  # type: ignore[return-value]
    found = scores(texts, images)
    signs = 2 * F.one_hot(places, len(images)).float() - 1
    return -F.logsigmoid(signs * found).sum()
