"""Steps between a file's rows and a task."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from mlplatform.errors import SpecError
from mlplatform.registry import Spec

ROW: dict[str, Any] = {"text": " A  Text\n", "n": 3, "tags": ["a", "b"], "flag": True, "none": None}
ROW["boxes"] = {"category": ["seven"], "bbox": [[0, 0, 8, 8]]}
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rename": ({"kind": "rename", "columns": {"review": "text"}}, {"review": " A  Text\n", "text": None}),
    "exchange": ({"kind": "rename", "columns": {"n": "text", "text": "n"}}, {"n": " A  Text\n", "text": 3}),
    "strip": ({"kind": "strip", "column": "text"}, {"text": "A  Text"}),
    "strip inner": ({"kind": "strip", "column": "text", "inner": True}, {"text": "A Text"}),
    "lower": ({"kind": "lower", "column": "text"}, {"text": " a  text\n"}),
    "replace": ({"kind": "replace", "column": "text", "pattern": r"(\w)ext", "by": r"\1es\1"}, {"text": " A  TesT\n"}),
    "split": ({"kind": "split", "column": "text"}, {"text": ["A", "Text"]}),
    "split at": ({"kind": "split", "column": "text", "separator": "  "}, {"text": [" A", "Text\n"]}),
    "take": ({"kind": "take", "column": "label", "entry": "tags.1"}, {"label": "b"}),
    "take inner": ({"kind": "take", "column": "text", "entry": "boxes.category.0"}, {"text": "seven"}),
    "template": ({"kind": "template", "column": "all", "text": "{{{n}}}: {text}"}, {"all": "{3}:  A  Text\n"}),
}
KEEPS: dict[str, tuple[dict[str, Any], bool]] = {
    "matches": ({"kind": "matches", "column": "text", "pattern": "^ A"}, True),
    "matches not": ({"kind": "matches", "column": "text", "pattern": "^A"}, False),
    "matches inverted": ({"kind": "matches", "column": "text", "pattern": "^A", "inverted": True}, True),
    "length": ({"kind": "length", "column": "text", "least": 9, "most": 9}, True),
    "too short": ({"kind": "length", "column": "text", "least": 10}, False),
    "too long": ({"kind": "length", "column": "tags", "most": 1}, False),
    "words": ({"kind": "length", "column": "text", "most": 2, "unit": "words"}, True),
    "one of": ({"kind": "one_of", "column": "n", "values": [3, "4"]}, True),
    "not one of": ({"kind": "one_of", "column": "n", "values": [4]}, False),
    "one of inverted": ({"kind": "one_of", "column": "flag", "values": [True], "inverted": True}, False),
}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no column": (
        {"kind": "lower", "column": "texts"},
        r"no column 'texts' \(did you mean 'text'\?\); it has text, n,",
    ),
    "no text": ({"kind": "strip", "column": "n"}, "'n' is a number, and a text is needed"),
    "null": ({"kind": "split", "column": "none"}, "'none' is null, and a text is needed"),
    "no size": ({"kind": "length", "column": "n"}, "'n' is a number, and a text or a list is needed"),
    "no entry": ({"kind": "take", "column": "n", "entry": "boxes.category.1"}, r"'boxes.category' has no entry '1'"),
    "no name": ({"kind": "take", "column": "n", "entry": "boxes.category.x"}, r"'boxes.category' has no entry 'x'"),
    "no nest": ({"kind": "take", "column": "n", "entry": "n.x"}, r"'n' has no entry 'x'"),
    "taken": ({"kind": "rename", "columns": {"n": "text"}}, "there is a column 'n' already"),
}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "pattern": ({"kind": "matches", "column": "text", "pattern": "("}, r"pattern='\(' is no regular expression"),
    "group": ({"kind": "replace", "column": "text", "pattern": "a", "by": r"\1"}, r"names what pattern='a' has not"),
    "brace": ({"kind": "template", "column": "a", "text": "{text"}, "is no template"),
    "code": ({"kind": "template", "column": "a", "text": "{text.__class__}"}, "the name of a column and nothing else"),
    "format": ({"kind": "template", "column": "a", "text": "{n:>9}"}, "the name of a column and nothing else"),
    "limits": ({"kind": "length", "column": "text", "least": 3, "most": 2}, "least=3 is more than most=2"),
    "no values": ({"kind": "one_of", "column": "n", "values": []}, r"values=\[\] keeps no row"),
}


def step(said: dict[str, Any]) -> Any:
    return pickle.loads(pickle.dumps(Spec.of(said, "step", "data.steps.0").build()))


@pytest.mark.parametrize(("said", "wanted"), CHANGES.values(), ids=CHANGES.keys())
def test_a_step_changes_a_row_and_not_the_one_it_got(said: dict[str, Any], wanted: dict[str, Any]) -> None:
    given = dict(ROW)
    made = step(said)(given)
    assert {**ROW, **made, **({"text": None} if "review" in made else {})} == {**ROW, **wanted}
    assert given == ROW


def test_choose_drops_all_others() -> None:
    assert step({"kind": "choose", "columns": ["n", "tags"]})(ROW) == {"n": 3, "tags": ["a", "b"]}


@pytest.mark.parametrize(("said", "kept"), KEEPS.values(), ids=KEEPS.keys())
def test_a_step_keeps_a_row_or_leaves_it_out(said: dict[str, Any], kept: bool) -> None:
    assert step(said)(ROW) == (ROW if kept else None)


@pytest.mark.parametrize(("said", "wanted"), BAD.values(), ids=BAD.keys())
def test_a_row_that_lacks_what_a_step_needs_is_bad(said: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        step(said)(ROW)


@pytest.mark.parametrize(("said", "wanted"), WRONG.values(), ids=WRONG.keys())
def test_a_step_that_cannot_work_is_told_before_any_row(said: dict[str, Any], wanted: str) -> None:
    with pytest.raises(SpecError, match=wanted):
        step(said)
