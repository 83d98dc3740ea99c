"""Chat templates: transformers' text to the letter, its marks of what the model says, and what none can do."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlplatform.errors import DataError
from mlplatform.processors import chat
from mlplatform.processors.chat import ChatTemplate
from mlplatform.processors.tokenizer import load as load_tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\nYou may call these functions:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "system" and loop.first %}{% continue %}{% endif %}
    {%- if message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.reasoning_content is defined and loop.index0 > ns.last %}
            {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {%- generation %}
        {{- (message.content or '').lstrip('\\n') }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function if call.function else call %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
BRACKETS = """{% if messages[0]['role'] == 'system' %}
{% set rest = messages[1:] %}
{% set told = '<<SYS>>\\n' ~ messages[0]['content'] | trim ~ '\\n<</SYS>>\\n\\n' %}
{% else %}
{% set rest = messages %}{% set told = '' %}
{% endif %}
{{ bos_token }}{% for message in rest %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + (told if loop.index0 == 0 else '') + message['content'].strip() + ' [/INST]' }}
{% else %}
{% generation %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endgeneration %}
{% endif %}
{% endfor %}"""
HEADERS = """{{- bos_token }}
{%- set date_string = date_string if date_string is defined else strftime_now("%d %b %Y") %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "Given the following functions, please respond with a JSON for a function call.\\n\\n" }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- macro part(content) %}
    {%- if content is string %}{{- content | trim }}
    {%- else %}{%- for item in content %}
        {%- if item.type == 'image' %}{{- '<|image|>' }}{%- else %}{{- item.text | trim }}{%- endif %}
    {%- endfor %}{%- endif %}
{%- endmacro %}
{%- for message in messages %}
    {%- if message.role == 'ipython' or message.role == 'tool' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {{- message.content | tojson if message.content is mapping else message.content }}{{- "<|eot_id|>" }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls|length != 1 %}{{- raise_exception("This model only supports one call at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' + (call.arguments | tojson) + "}" }}{{- "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- part(message.content) + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
LLAVA = """{% for message in messages %}
{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}
{# Render all images first #}
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}
{# Render all text next #}
{% if message['role'] != 'assistant' %}
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}
{% else %}
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}
{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
TURNS = """{{ bos_token }}{% for m in messages recursive %}{% set d = dict(role=m.role) %}
{%- if m.role == 'stop' %}{% break %}{% endif -%}
<start_of_turn>{{ 'model' if d.role == 'assistant' else d['role'] }}
{{ m.content | default('nothing', true) | trim }}<end_of_turn>{{ loop.length }}
{{- loop.nextitem.role if not loop.last else 'end' }}
{% endfor %}{% for k, v in {'a': 1, 'b': '<&>'} | dictsort %}{{ k ~ v ~ loop.last ~ [1, 2] * 2 }}{% endfor %}
{%- if documents %}{% for doc in documents %}{{ loop.index }}. {{ doc.title }}: {{ doc['text'][:5] }}
{% endfor %}{% endif %}"""
TALK = [
    {"role": "system", "content": " You are <b>terse</b> & kind. "},
    {"role": "user", "content": "Hi 👋 — what's 2+2?\n"},
    {"role": "assistant", "content": "\n\n4 ", "reasoning_content": "\nTwo and two.\n"},
    {"role": "user", "content": "And \"3\"?"},
]  # fmt: skip
TOOL = {"type": "function", "function": {"name": "weather", "description": "Where's <rain>?", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "enum": ["Zürich", "東京"]}}}}}  # fmt: skip
CALLS = [
    TALK[1],
    {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "東京", "days": 2}}}]},
    {"role": "tool", "content": "{\"sun\": true}"},
    {"role": "assistant", "content": "It shines."},
]  # fmt: skip
PARTS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this? "}, {"type": "image"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
]
CASES = {
    "chatml": (CHATML, TALK, {}),
    "chatml prompt": (CHATML, TALK, {"add_generation_prompt": True}),
    "chatml no thinking": (CHATML, TALK, {"add_generation_prompt": True, "enable_thinking": False}),
    "chatml last thought": (CHATML, TALK[:3], {}),
    "chatml tools": (CHATML, CALLS, {"tools": [TOOL]}),
    "chatml system and tools": (CHATML, TALK, {"tools": [TOOL, TOOL], "add_generation_prompt": True}),
    "chatml continued": (CHATML, TALK[:3], {"continue_final_message": True}),
    "brackets": (BRACKETS, TALK, {}),
    "brackets without system": (BRACKETS, TALK[1:], {}),
    "brackets continued, trimmed": (BRACKETS, TALK[:3], {"continue_final_message": True}),
    "headers": (HEADERS, TALK, {"add_generation_prompt": True}),
    "headers dated": (HEADERS, TALK, {"date_string": "26 Jul 2024"}),
    "headers tools": (HEADERS, CALLS, {"tools": [TOOL], "add_generation_prompt": True}),
    "headers parts": (HEADERS, PARTS, {}),
    "headers parts continued": (HEADERS, PARTS, {"continue_final_message": True}),
    "llava": (LLAVA, PARTS, {"add_generation_prompt": True}),
    "turns": (TURNS, TALK[1:], {}),
    "turns documents": (TURNS, [*TALK, {"role": "stop"}, TALK[1]], {"documents": [{"title": "A", "text": "abcdefg"}]}),
}


def reference(template: str | dict[str, str] | None) -> PreTrainedTokenizerFast:
    """Return a tokenizer of transformers that writes every byte as a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate([*SPECIAL.values(), *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **SPECIAL)


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str) -> None:
    template, messages, options = CASES[name]
    expected = reference(template).apply_chat_template(messages, tokenize=False, **options)
    before = json.dumps(messages)
    assert ChatTemplate(template, SPECIAL).render(messages, **options) == expected
    assert json.dumps(messages) == before, "the caller's messages were changed"
    assert len(expected) > 20


@pytest.mark.parametrize(("template", "messages"), [(CHATML, TALK), (CHATML, CALLS), (BRACKETS, TALK), (LLAVA, PARTS)])
def test_marks_what_the_model_says(template: str, messages: list[Any]) -> None:
    theirs = reference(template)
    done = theirs.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    text, spans = ChatTemplate(template, SPECIAL).render_spans(messages)
    offsets = theirs(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ours = [int(any(start < b and a < end for start, end in spans)) for a, b in offsets]
    assert ours == done["assistant_masks"]
    assert 0 < sum(ours) < len(ours)


def test_files_both_ways(tmp_path: Path) -> None:
    both = {"default": BRACKETS, "tool_use": HEADERS}
    theirs = reference(both)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = ChatTemplate.from_folder(tmp_path / "theirs")
    assert ours is not None
    assert ours.templates == both
    for tools in (None, [TOOL]):
        assert ours.render(TALK, tools=tools) == theirs.apply_chat_template(TALK, tools=tools, tokenize=False)
    for name, text in ours.files().items():
        assert (tmp_path / "theirs" / name).read_text() == text
    old = tmp_path / "old"
    old.mkdir()
    listed = [{"name": name, "template": text} for name, text in both.items()]
    (old / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed, "bos_token": {"content": "<s>"}}))
    read = ChatTemplate.from_folder(old)
    assert read is not None
    assert (read.templates, read.special) == (both, {"bos_token": "<s>"})
    assert ChatTemplate.from_folder(tmp_path) is None


@pytest.mark.parametrize("templates", [HEADERS, {"default": BRACKETS, "tool_use": HEADERS}])
def test_a_tokenizer_keeps_its_templates(templates: Any, tmp_path: Path) -> None:
    reference(templates).save_pretrained(tmp_path / "theirs")
    ours = load_tokenizer(tmp_path / "theirs")
    ours.save(tmp_path / "ours")
    again = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert ours.chat is not None
    for tools in (None, [TOOL]):
        expected = again.apply_chat_template(TALK, tools=tools, tokenize=False)
        assert ours.chat.render(TALK, tools=tools) == expected
        assert pickle.loads(pickle.dumps(ours)).chat.render(TALK, tools=tools) == expected
    reference(None).save_pretrained(tmp_path / "plain")
    assert load_tokenizer(tmp_path / "plain").chat is None


def test_the_template_sees_no_more_than_plain_values() -> None:
    class Loud(str):
        def shout(self) -> str:
            raise AssertionError

    shown = ChatTemplate("{{ messages[0].picture }} {{ messages[0].content.shout }} {{ messages[0].n + 1 }}")
    told = shown.render([{"role": "user", "content": Loud("a"), "picture": np.zeros(3), "n": True}])
    assert told == "<ndarray>  2"


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ messages.__class__ }}", ""),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe|access"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe"),
        ("{{ namespace(_a=1) }}", "names that begin with _"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe|access"),
        ("{{ '{0.__class__.__mro__}'.format(1) }}", "unsafe|access"),
    ],
)
def test_nothing_leads_out(template: str, told: str) -> None:
    shown = ChatTemplate(template)
    if not told:
        assert shown.render([{"role": "user", "content": "x"}]) == ""
        return
    with pytest.raises(DataError, match=told) as error:
        shown.render([{"role": "user", "content": "x"}])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in [1,2,3,4,5,6,7,8,9,0] %}" * 9 + "{% endfor %}" * 9,
        "{% macro f(n) %}{{ f(n - 1) if n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(100) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 999999999999 }}",
        "{{ [0] * 999999999999 }}",
        "{{ 9 ** 99999999 }}",
        "{% set ns = namespace(x='y') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='y') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% for i in range(99999) %}{{ '%0999d' % 1 }}{% endfor %}",
        "{{ range(999999999) }}",
    ],
)
def test_limits(template: str) -> None:
    start = time.process_time()
    with pytest.raises(DataError) as error:
        ChatTemplate(template).render([{"role": "user", "content": "x"}])
    assert "\n" not in str(error.value)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("template", "messages", "options", "told"),
    [
        ("{% for %}", TALK, {}, "line 1 of the template"),
        ("x" * (chat.LONGEST_TEMPLATE + 1), TALK, {}, "524289 characters; 524288 at most"),
        (BRACKETS, TALK[2:], {}, "Conversation roles must alternate"),
        ("{{ messages[0].content + 1 }}", TALK, {}, "the template fails: TypeError"),
        ("{{ none_such.field }}", TALK, {}, "'none_such' is undefined"),
        (CHATML, [], {}, "the conversation is empty"),
        (CHATML, ["hi"], {}, "a message is a mapping .*, not a str"),
        (CHATML, TALK, {"continue_final_message": True, "add_generation_prompt": True}, "continued or begun, not both"),
        ("{{ messages[0].role }}", TALK, {"continue_final_message": True}, "does not write the last message"),
        (
            CHATML,
            [{"role": "user", "content": [{"type": "image"}]}],
            {"continue_final_message": True},
            "no text to contin",
        ),
        ({"rag": "x"}, TALK, {}, "no default template; choose one with template=: rag"),
        ({}, TALK, {}, "no default template"),
    ],
)
def test_errors_are_one_line(template: Any, messages: list[Any], options: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told) as error:
        ChatTemplate(template).render(messages, **options)
    assert "\n" not in str(error.value)


def test_broken_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: not a readable JSON file"):
        ChatTemplate.from_folder(tmp_path)
