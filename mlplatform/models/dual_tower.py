"""Two towers that meet in one space: CLIP, SigLIP."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlplatform.context import Output
from mlplatform.models.assemblies import add_loss
from mlplatform.registry import Spec, block


@block("model/dual_tower")
class DualTower(nn.Module):
    """A text and an image tower, each with a `projection` head; pairs are scored by the cosine. arXiv:2103.00020

    Args:
        logit_scale: log of the factor on the cosines at the start; HF's `logit_scale_init_value`.
        logit_bias: of the scores at the start (SigLIP), null for none.
        init, hf: as in `single_tower`.
    """

    def __init__(
        self,
        *,
        text: Annotated[Spec, "model"],
        vision: Annotated[Spec, "model"],
        logit_scale: float = 2.6592,
        logit_bias: float | None = None,
        init: Annotated[Spec, "init"] | None = None,
        hf: dict | None = None,
    ) -> None:
        super().__init__()
        self.text = text.build()
        self.vision = vision.build()
        self.start = (logit_scale, logit_bias)
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale))
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor(logit_bias))

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
        return_loss: bool = False,
        **batch: Any,
    ) -> Output:
        """Score every text (texts, length) against every image (images, channels, height, width).

        Returns:
            text_embeds and image_embeds of unit length, logits_per_text (texts, images), logits_per_image, and with
            `return_loss` the contrastive loss of a batch whose n-th text belongs to its n-th image.
        """
        out = Output()
        if input_ids is not None:
            text = self.text(input_ids=input_ids, attention_mask=attention_mask, **batch)
            out.text_embeds, out.text_model_output = F.normalize(text.embeds, dim=-1), text
        if pixel_values is not None:
            vision = self.vision(pixel_values=pixel_values)
            out.image_embeds, out.vision_model_output = F.normalize(vision.embeds, dim=-1), vision
        if input_ids is not None and pixel_values is not None:
            scores = out.text_embeds @ out.image_embeds.t() * self.logit_scale.exp()
            out.logits_per_text = scores if self.logit_bias is None else scores + self.logit_bias
            out.logits_per_image = out.logits_per_text.t()
            if return_loss:
                add_loss(out, *contrastive_loss(out.logits_per_text))
        return out


def contrastive_loss(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return (sum, count) of the cross-entropy of each row and each column on the diagonal, halved."""
    own = torch.arange(len(scores), device=scores.device)
    total = F.cross_entropy(scores.float(), own, reduction="sum")
    total = total + F.cross_entropy(scores.float().t(), own, reduction="sum")
    return total / 2, torch.tensor(len(scores), device=scores.device)
