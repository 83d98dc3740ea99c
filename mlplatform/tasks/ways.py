"""How models that write read an image, and which tasks let them."""

from __future__ import annotations

from typing import Any, Literal

Way = Literal["beside", "asked", "within"]
"""`beside` the text it goes on with (BLIP's captions); beside a question that is `asked`, which a decoder answers
(BLIP's answers); or `within` the text, where its vectors take the places of tokens (LLaVA)."""
TASKS: dict[Way, tuple[str, ...]] = {
    "beside": ("captioning", "visual_question_answering"),
    "asked": ("visual_question_answering",),
    "within": ("captioning", "visual_question_answering", "visual_chat"),
}
MODELS: dict[Way, str] = {"beside": "blip_tiny", "asked": "blip_vqa", "within": "llava_tiny"}
"""One that reads images so."""


def way_of(model: Any) -> Way | None:
    """Return how a model reads images and writes about them, None for one that does not."""
    kind = getattr(model, "kind", "")
    inner = {"grounded_text": "text", "vision_language": "language"}.get(kind)
    part: Any = getattr(model, inner) if inner else None
    if getattr(getattr(part, "head", None), "task", "") != "causal_lm":
        return None
    if kind == "grounded_text":
        return "asked" if part.kind == "encoder_decoder" else "beside"
    return "within" if part.kind == "single_tower" else None


def fitting(way: Way) -> str:
    """Say which tasks fit."""
    return f"{' and '.join(TASKS[way])} fit{'s' * (len(TASKS[way]) == 1)} it"
