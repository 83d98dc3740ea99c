"""Steps between a file's rows and a task: small changes of a row's values, and rows that are left out.

`data.steps` lists them; each gets the columns as the one before left them. They are named kinds and no code, so a
config can be read, checked and run again anywhere.
"""

from __future__ import annotations

import re
import string
from typing import Any, Literal

from mlplatform.data.fields import Values, named
from mlplatform.errors import SpecError, did_you_mean, listing
from mlplatform.registry import Natural, Positive, Text, block


class Step:
    """One step: gets a row's values and returns them changed, or None for a row that is left out.

    Raises ValueError for a row that lacks what it needs.
    """

    def __call__(self, values: Values) -> Values | None:
        raise NotImplementedError


def column(values: Values, name: str) -> Any:
    """Return the value of a column. Raises ValueError with the nearest name."""
    if name not in values:
        raise ValueError(f"no column '{name}'{did_you_mean(name, values)}; it has {listing(values)}")
    return values[name]


def text_of(values: Values, name: str) -> str:
    """Return the text in a column. Raises ValueError when it is none."""
    value = column(values, name)
    if not isinstance(value, str):
        raise ValueError(f"'{name}' is {named(value)}, and a text is needed")
    return value


@block("step/rename")
class Rename(Step):
    """Give columns other names.

    Args:
        columns: new name -> name in the file.
    """

    def __init__(self, *, columns: dict[str, Text]) -> None:
        self.columns = columns

    def __call__(self, values: Values) -> Values:
        taken = {new: column(values, old) for new, old in self.columns.items()}
        rest = {name: value for name, value in values.items() if name not in self.columns.values()}
        if both := [name for name in taken if name in rest]:
            raise ValueError(f"there is a column '{both[0]}' already; the steps before can rename or drop it")
        return rest | taken


@block("step/take")
class Take(Step):
    """Make a column of one entry of another: the class of a scene's first object, for one.

    Args:
        column: the new one. entry: names and numbers from the outside in, such as `objects.category.0`.
    """

    def __init__(self, *, column: Text, entry: Text) -> None:
        self.column, self.entry = column, entry

    def __call__(self, values: Values) -> Values:
        first, *inner = self.entry.split(".")
        found = column(values, first)
        for depth, key in enumerate(inner, 1):
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (LookupError, TypeError, ValueError):
                outer = ".".join([first, *inner[: depth - 1]])
                raise ValueError(f"'{outer}' has no entry '{key}', which step take asks for ({self.entry})") from None
        return {**values, self.column: found}


@block("step/choose")
class Choose(Step):
    """Keep some columns and drop all others.

    Args:
        columns: their names.
    """

    def __init__(self, *, columns: list[Text]) -> None:
        self.columns = columns

    def __call__(self, values: Values) -> Values:
        return {name: column(values, name) for name in self.columns}


@block("step/strip")
class Strip(Step):
    """Take white space off both ends of a text, or make it one space everywhere.

    Args:
        column: whose text. inner: also what stands between words becomes one space.
    """

    def __init__(self, *, column: Text, inner: bool = False) -> None:
        self.column, self.inner = column, inner

    def __call__(self, values: Values) -> Values:
        text = text_of(values, self.column)
        return {**values, self.column: " ".join(text.split()) if self.inner else text.strip()}


@block("step/lower")
class Lower(Step):
    """Write a text in lower case.

    Args:
        column: whose text.
    """

    def __init__(self, *, column: Text) -> None:
        self.column = column

    def __call__(self, values: Values) -> Values:
        return {**values, self.column: text_of(values, self.column).lower()}


@block("step/replace")
class Replace(Step):
    """Replace every match of a regular expression (Python's) in a text.

    Args:
        column: whose text. pattern: the expression. by: what comes in its place; `\\1` is the first group.
    """

    def __init__(self, *, column: Text, pattern: Text, by: str) -> None:
        self.column, self.pattern, self.by = column, _pattern(pattern), by
        try:
            self.pattern.sub(by, "")
            re.compile(f"{pattern}|").sub(by, "")
        except (re.error, IndexError) as error:
            raise SpecError(f"by={by!r} names what pattern={pattern!r} has not: {error}") from None

    def __call__(self, values: Values) -> Values:
        return {**values, self.column: self.pattern.sub(self.by, text_of(values, self.column))}


@block("step/look_up")
class LookUp(Step):
    """Replace a value by what a table says of it: the name of a class by words, for one.

    Args:
        column: whose value, compared as a text. table: value -> what comes in its place; one that it lacks is an error.
    """

    def __init__(self, *, column: Text, table: dict[str, Text]) -> None:
        self.column, self.table = column, table

    def __call__(self, values: Values) -> Values:
        value = str(column(values, self.column))
        if value not in self.table:
            raise ValueError(f"'{self.column}' is '{value}', and the table has {listing(self.table)}")
        return {**values, self.column: self.table[value]}


@block("step/split")
class Split(Step):
    """Make a list of a text.

    Args:
        column: whose text. separator: what stands between two entries; null for any white space.
    """

    def __init__(self, *, column: Text, separator: Text | None = None) -> None:
        self.column, self.separator = column, separator

    def __call__(self, values: Values) -> Values:
        text = text_of(values, self.column)
        return {**values, self.column: text.split(self.separator) if text.strip() else []}


class Pattern:
    """A text with names of columns in braces; `{{` is a brace.

    Raises:
        SpecError: something else stands in braces. `key` names the option.
    """

    def __init__(self, text: str, key: str) -> None:
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise SpecError(f"{key}={text!r} is no template: {error}") from None
        if any(form or change or (name is not None and not name.isidentifier()) for _, name, form, change in parts):
            raise SpecError(f"{key}={text!r}: braces hold the name of a column and nothing else")
        self.parts = [(words, name) for words, name, _, _ in parts]

    def fill(self, values: Values) -> str:
        """Return the text. Raises ValueError for a column that is not there."""
        return "".join(words + (str(column(values, name)) if name else "") for words, name in self.parts)


@block("step/template")
class Template(Step):
    """Write a text from other columns.

    Args:
        column: where it goes. text: `{question} {context}`, with the names of columns in braces; `{{` is a brace.
    """

    def __init__(self, *, column: Text, text: Text) -> None:
        self.column, self.pattern = column, Pattern(text, "text")

    def __call__(self, values: Values) -> Values:
        return {**values, self.column: self.pattern.fill(values)}


@block("step/chat")
class Chat(Step):
    """Write a conversation of one question and its answer from other columns: `messages`, as the task `chat` reads it.

    Args:
        user, assistant: what each says, such as `{question}`, with the names of columns in braces; `{{` is a brace.
        system: what stands before them, null for nothing.
    """

    def __init__(self, *, user: Text, assistant: Text, system: Text | None = None) -> None:
        said = {"system": system, "user": user, "assistant": assistant}
        self.turns = {role: Pattern(text, role) for role, text in said.items() if text is not None}

    def __call__(self, values: Values) -> Values:
        turns = [{"role": role, "content": pattern.fill(values)} for role, pattern in self.turns.items()]
        return {**values, "messages": turns}


@block("step/matches")
class Matches(Step):
    """Keep the rows in whose text a regular expression (Python's) is found.

    Args:
        column: whose text. pattern: the expression. inverted: keep the other rows.
    """

    def __init__(self, *, column: Text, pattern: Text, inverted: bool = False) -> None:
        self.column, self.pattern, self.inverted = column, _pattern(pattern), inverted

    def __call__(self, values: Values) -> Values | None:
        found = self.pattern.search(text_of(values, self.column)) is not None
        return values if found != self.inverted else None


@block("step/length")
class Length(Step):
    """Keep the rows whose text or list has a length.

    Args:
        column: whose. least: characters of a text or entries of a list, at least. most: at most; null for no limit.
        unit: what is counted in a text.
    """

    def __init__(
        self,
        *,
        column: Text,
        least: Natural = 1,
        most: Positive | None = None,
        unit: Literal["characters", "words"] = "characters",
    ) -> None:
        if most is not None and most < least:
            raise SpecError(f"least={least} is more than most={most}")
        self.column, self.least, self.most, self.unit = column, least, most, unit

    def __call__(self, values: Values) -> Values | None:
        value = column(values, self.column)
        if not isinstance(value, str | list):
            raise ValueError(f"'{self.column}' is {named(value)}, and a text or a list is needed")
        size = len(value.split()) if isinstance(value, str) and self.unit == "words" else len(value)
        return values if size >= self.least and (self.most is None or size <= self.most) else None


@block("step/one_of")
class OneOf(Step):
    """Keep the rows whose value is one of a list.

    Args:
        column: whose value, compared as a text. values: those that stay. inverted: those that go.
    """

    def __init__(self, *, column: Text, values: list[str | int | float | bool], inverted: bool = False) -> None:
        if not values:
            raise SpecError("values=[] keeps no row")
        self.column, self.kept, self.inverted = column, {str(value) for value in values}, inverted

    def __call__(self, values: Values) -> Values | None:
        return values if (str(column(values, self.column)) in self.kept) != self.inverted else None


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise SpecError(f"pattern={text!r} is no regular expression: {error}") from None
