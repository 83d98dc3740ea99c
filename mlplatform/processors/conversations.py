"""A conversation as tokens, with what the assistant says marked: what a chat template writes, cut nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlplatform.errors import DataError
from mlplatform.processors.chat import ChatTemplate, Message

CHATML = """\
{%- macro said(content) %}
    {%- if content is string %}{{ content }}{% else %}
        {%- for part in content %}{{ '<image>\\n' if part.type == 'image' else part.text }}{% endfor %}
    {%- endif %}
{%- endmacro %}
{{- bos_token or '' }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation %}{{ said(message.content) + '<|im_end|>' }}{% endgeneration %}
    {%- else %}
        {{- said(message.content) + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
"""OpenAI's ChatML, with marks around what the assistant says: the template of a tokenizer that has none of its own.
A content is a text, or a list of parts, texts and images."""
Spans = list[tuple[int, int]]


def template_of(tokenizer: Any) -> ChatTemplate:
    """Return a tokenizer's chat template. Raises DataError when it has none."""
    if tokenizer.chat is None:
        told = "has no chat template; train one that has with tokenizer=chat_bpe, or set tokenizer.chat=chatml"
        raise DataError(f"{tokenizer.source} {told}")
    return tokenizer.chat


def conversation(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], Spans]:
    """Return the tokens of a conversation, and (start, end) in them of each turn of the assistant's, its end included.

    Where the template marks nothing by `{% generation %}`, a turn is what a conversation up to it has more than the
    one before it with the words that introduce an answer.

    Raises:
        DataError: there is no template, it fails, or it doesn't show where the assistant's turns are.
    """
    template = template_of(tokenizer)
    text, spans = template.render_spans(messages)
    encoded = tokenizer.backend.encode(text, add_special_tokens=False)
    starts, ends = np.asarray(encoded.offsets, dtype=np.int64).reshape(-1, 2).T
    found = spans or _between(template, messages, text)
    return encoded.ids, [(int(np.searchsorted(ends, a, "right")), int(np.searchsorted(starts, b))) for a, b in found]


def opening(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Return the tokens of a conversation that ends with what introduces an answer."""
    text = template_of(tokenizer).render(messages, add_generation_prompt=True)
    return tokenizer.encode(text, specials=False)


def _between(template: ChatTemplate, messages: Sequence[Message], text: str) -> Spans:
    spans: Spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = template.render(messages[:number], add_generation_prompt=True) if number else text
        upto = template.render(messages[: number + 1])
        if not (upto.startswith(before) and text.startswith(upto)):
            told = "does not show where the assistant's turns are; put {% generation %} and {% endgeneration %} around"
            raise DataError(f"{template.source}: the chat template {told} what it writes of them")
        spans.append((len(before), len(upto)))
    return spans
