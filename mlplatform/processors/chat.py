"""Conversations as text, by a model's chat template: Jinja from strangers, rendered in a sandbox with limits.

The sandbox is Jinja's own: a template reaches no attribute that leads out of its values, and changes none of them. It
sees plain JSON values only. What it may use is bounded: its length, the length of what it writes and of every text it
makes by joining or repeating, and the rounds of its loops and calls together. Filters that pad or format a text are
not counted, so a service for strangers' templates should bound the process's memory as well.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mlplatform.errors import DataError, listing

Message = Mapping[str, Any]
LONGEST_TEMPLATE = 512 * 1024
LONGEST_TEXT = 8 * 1024 * 1024
MOST_ROUNDS = 500_000
"""Characters of a template, characters it may write, and rounds of its loops and calls, for one conversation."""
CONTINUED = "\ue000continue here\ue000 "
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names a message's reasoning comes under; templates read the first, or the second."""


class ChatTemplate:
    """One or several named templates, as a tokenizer's files hold them.

    Args:
        templates: a template, or several by name: `default`, and `tool_use` for conversations with tools.
        special: what a template may write of special tokens: bos_token, eos_token, ...
        source: names it in messages.

    Raises:
        DataError: no template, one that is too long or no Jinja.
    """

    def __init__(
        self,
        templates: str | Mapping[str, str],
        special: Mapping[str, Any] | None = None,
        source: str = "chat template",
    ) -> None:
        self.templates = {"default": templates} if isinstance(templates, str) else dict(templates)
        self.special, self.source = dict(special or {}), source
        for name, text in self.templates.items():
            if not isinstance(text, str):
                raise DataError(f"{source}: template {name!r} is a {type(text).__name__}, not a text")
            if len(text) > LONGEST_TEMPLATE:
                raise DataError(f"{source}: template {name!r} has {len(text)} characters; {LONGEST_TEMPLATE} at most")
            self._guarded(lambda text=text: _compiled(text))

    @classmethod
    def from_folder(cls, folder: str | Path) -> ChatTemplate | None:
        """Read chat_template.jinja, chat_template.json or tokenizer_config.json, and additional_chat_templates/.

        Returns None when none of them holds a template. Raises DataError for a file that can't be read.
        """
        folder = Path(folder)
        config, apart = _json(folder / "tokenizer_config.json"), _json(folder / "chat_template.json")
        if apart.get("chat_template") is not None:
            config["chat_template"] = apart["chat_template"]
        more = folder / "additional_chat_templates"
        templates = {}
        for file in (folder / "chat_template.jinja", *sorted(more.glob("*.jinja"))):
            if file.is_file():
                templates["default" if file.parent == folder else file.stem] = _text(file)
        return cls.of_config(config, str(folder), templates)

    @classmethod
    def of_config(
        cls, config: Mapping[str, Any], source: str, templates: Mapping[str, str] | None = None
    ) -> ChatTemplate | None:
        """Return the templates of a tokenizer_config.json's contents and `templates`, None when there are none."""
        found = config.get("chat_template")
        if isinstance(found, list):  # [{name, template}, ...]
            found = {str(item.get("name")): item.get("template") for item in found if isinstance(item, Mapping)}
        given: dict[str, Any] = dict(found) if isinstance(found, Mapping) else {"default": found} if found else {}
        given |= templates or {}
        if not given:
            return None
        special = {key: _content(value) for key, value in config.items() if key.endswith("_token")}
        named = config.get("extra_special_tokens")
        special |= {key: _content(value) for key, value in named.items()} if isinstance(named, Mapping) else {}
        return cls(given, {key: value for key, value in special.items() if isinstance(value, str)}, source)

    def files(self) -> dict[str, str]:
        """Return name of a file -> its contents, as transformers writes and reads them."""
        places = {name: f"additional_chat_templates/{name}.jinja" for name in self.templates}
        places["default"] = "chat_template.jinja"
        return {places[name]: text for name, text in self.templates.items()}

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """Return the conversation as text, as transformers' `apply_chat_template` does.

        Args:
            messages: each with a `role` and mostly a `content`, a text or parts such as {"type": "image"}.
            tools: JSON schemas. documents: for retrieval, where the template reads them.
            add_generation_prompt: end with what introduces an answer.
            continue_final_message: end within the last message, for the model to go on with it.
            template: the name of one of several templates, or a template.
            variables: anything else the template reads (`enable_thinking`).

        Raises:
            DataError: what the template itself complains of, an error in it, a limit it passes, or arguments that
                don't go together.
        """
        text, _ = self._render(
            messages, tools, documents, add_generation_prompt, continue_final_message, template, variables
        )
        return text

    def render_spans(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        **variables: Any,
    ) -> tuple[str, list[tuple[int, int]]]:
        """Return the text, and the (start, end) characters that `{% generation %}` marks: what a model should say."""
        return self._render(messages, tools, documents, False, False, template, variables)

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        documents: Sequence[Mapping[str, Any]] | None,
        prompt: bool,
        unfinished: bool,
        template: str | None,
        variables: Mapping[str, Any],
    ) -> tuple[str, list[tuple[int, int]]]:
        if unfinished and prompt:
            raise DataError(
                "continue_final_message and add_generation_prompt: an answer is continued or begun, not both"
            )
        chat = [_message(one) for one in messages]
        if not chat:
            raise DataError("the conversation is empty; give at least one message")
        last = _mark_end(chat) if unfinished else ""
        compiled = _compiled(self._chosen(template, tools is not None))
        given = {**self.special, **plain(variables), "messages": chat, "add_generation_prompt": prompt}
        given |= {"tools": plain(tools), "documents": plain(documents)}
        text, spans = self._guarded(lambda: _written(compiled, given))
        return (_cut(text, last) if unfinished else text), spans

    def _chosen(self, template: str | None, tools: bool) -> str:
        if template is not None:
            return self.templates.get(template, template)
        name = "tool_use" if tools and "tool_use" in self.templates else "default"
        if name not in self.templates:
            raise DataError(f"{self.source}: no default template; choose one with template=: {listing(self.templates)}")
        return self.templates[name]

    def _guarded(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except DataError:
            raise
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"{self.source}: line {error.lineno} of the template: {error.message}") from None
        except jinja2.TemplateError as error:
            raise DataError(f"{self.source}: {_line(error)}") from None
        except (RecursionError, MemoryError, OverflowError):
            raise DataError(f"{self.source}: the template uses too much depth or memory") from None
        except Exception as error:  # a template's own mistake can be any exception of Python's
            raise DataError(f"{self.source}: the template fails: {type(error).__name__}: {_line(error)}") from None


@dataclasses.dataclass
class Meter:
    """What one rendering has used so far."""

    rounds: int = 0
    active: bool = True
    length: Callable[[], int] = lambda: 0
    spans: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def count(self) -> None:
        self.rounds += 1
        if self.rounds > MOST_ROUNDS:
            raise DataError(f"the chat template takes more than {MOST_ROUNDS} rounds of its loops and calls")


METER: ContextVar[Meter | None] = ContextVar("METER", default=None)


def _written(template: jinja2.Template, given: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
    parts: list[str] = []
    length = 0
    meter = Meter(length=lambda: length)
    before = METER.set(meter)
    try:
        for part in template.generate(**given):
            parts.append(part)
            length += len(part)
            if length > LONGEST_TEXT:
                raise DataError(f"the chat template writes more than {LONGEST_TEXT} characters")
    finally:
        METER.reset(before)
    return "".join(parts), meter.spans


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which counts rounds and bounds the texts that operators make."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _count()
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and _size(left) * _times(right) + _size(right) * _times(left) > LONGEST_TEXT:
            raise DataError(f"the chat template repeats a value to more than {LONGEST_TEXT} characters")
        if operator == "**" and isinstance(left, int) and left.bit_length() * max(int(right), 0) > 4096:
            raise DataError("the chat template takes a power of more than 4096 bits")
        if operator == "+" and _size(left) + _size(right) > LONGEST_TEXT:
            raise DataError(f"the chat template joins values to more than {LONGEST_TEXT} characters")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _metered(tree)
        return tree


class Generation(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: what the model is to say, in a template for training."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja types it

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    def _note(self, caller: Callable[[], str]) -> str:
        said, meter = caller(), METER.get()
        if meter is not None:
            meter.spans.append((meter.length(), meter.length() + len(said)))
        return said


class Maker:
    """`dict` within a template: the call and `fromkeys`, and nothing else of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `namespace(self=1)` is one a template may make
        for name in dict(*args[1:], **kwargs):
            _check_name(name)
        jinja2.utils.Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


@lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    sandbox.filters["tojson"] = _tojson
    sandbox.filters["metered"] = _rounds
    sandbox.globals |= {"raise_exception": _complain, "strftime_now": _now, "dict": Maker(), "namespace": Namespace}
    return sandbox.from_string(template)


def _metered(tree: nodes.Node) -> None:
    """Count the rounds of every loop, and write `a ~ b` as a sum of texts, which is bounded."""
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = nodes.Filter(loop.iter, "metered", [], [], None, None).set_lineno(loop.lineno)
    for node in [tree, *tree.find_all(nodes.Node)]:
        for field, value in node.iter_fields():
            if isinstance(value, nodes.Concat):
                setattr(node, field, _sum(value))
            elif isinstance(value, list):
                value[:] = [_sum(item) if isinstance(item, nodes.Concat) else item for item in value]
    tree.set_environment(tree.environment)  # type: ignore[arg-type]


def _sum(concat: nodes.Concat) -> nodes.Expr:
    line = concat.lineno
    total: nodes.Expr | None = None
    for item in concat.nodes:
        text = nodes.Filter(item, "string", [], [], None, None, lineno=line)
        total = text if total is None else nodes.Add(total, text, lineno=line)
    return total or concat


@jinja2.pass_context
def _rounds(context: Any, values: Any) -> Any:
    """Return a loop's values, each counted. It asks for a context so that Jinja takes it for no constant."""
    if isinstance(values, (list, tuple, str, range, Mapping)):
        for _ in values:
            _count()
        return values
    return values if isinstance(values, jinja2.Undefined) else _taken(values)


def _taken(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _count()
        yield value


def _count() -> None:
    if (meter := METER.get()) is not None:
        meter.count()


def _complain(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own would write <, > and & as escapes of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def plain(value: Any) -> Any:
    """Return JSON's own values of what is given; anything else, such as an image, becomes the name of its type."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):  # a subclass may have methods of its own
        return str.__str__(value)
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value) if type(value) in (list, tuple) else [plain(i) for i in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return f"<{type(value).__name__}>"


def _message(message: Any) -> dict[str, Any]:
    told = plain(message)
    if not isinstance(told, dict):
        raise DataError(f"a message is a mapping with a role and a content, not a {type(message).__name__}")
    told = {key: value for key, value in told.items() if value is not None}
    reasoning = next((told[name] for name in REASONING if name in told), None)
    return told if reasoning is None else {"thinking": reasoning, **told, "reasoning_content": reasoning}


def _mark_end(chat: list[dict[str, Any]]) -> str:
    """Put a mark behind the text of the last message; return that text."""
    holder, key = chat[-1], "content"
    if isinstance(holder.get(key), list):
        parts = [part for part in holder[key] if isinstance(part, dict) and "text" in part]
        holder, key = (parts[-1] if parts else {}), "text"
    text = holder.get(key)
    if not isinstance(text, str):
        raise DataError("continue_final_message: the last message has no text to continue")
    holder[key] = text + CONTINUED
    return text


def _cut(text: str, last: str) -> str:
    place = text.rfind(CONTINUED.strip())
    if place < 0 or last.strip() not in text:
        raise DataError("continue_final_message: the template does not write the last message as it stands")
    whole = text[place : place + len(CONTINUED)] == CONTINUED
    return text[:place] if whole else text[:place].rstrip()


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _times(value: Any) -> int:
    return max(value, 0) if isinstance(value, int) else 0


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"namespace({name}): names that begin with _ are not for templates")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _content(value: Any) -> Any:
    return value.get("content") if isinstance(value, Mapping) else value


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(_text(path))
    except ValueError as error:
        raise DataError(f"{path}: not a readable JSON file: {error}") from None
    if not isinstance(data, dict):
        raise DataError(f"{path}: a JSON object is needed, not a {type(data).__name__}")
    return data


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable text: {error}") from None
