"""Configs read by what they have alike say what they say read alone."""

from __future__ import annotations

import random

import pytest
import yaml

from mlplatform.cli.compose import compose
from mlplatform.errors import RunError
from mlplatform.runs.alike import Alike
from mlplatform.runs.config_file import leaves

ODD = [
    "0.1", "1e-3", "1.0e-3", "true", "null", "~", "", "'it''s'", '"a: b # c"', "a # comment", "# nothing", "---", "|",
    ">", "*other", "&name 3", "!!str 3", "{a: 1}", "[1, 2]", "[]", "{}", "- x", "a: b", "'open", "@at",
    "2026-11-23", "0o17", "?", ":",
]  # fmt: skip


def alone(text: str) -> dict[str, object] | None:
    try:
        return leaves(yaml.safe_load(text))
    except yaml.YAMLError:
        return None


def read(alike: Alike, text: str) -> dict[str, object] | None:
    try:
        return alike.leaves(text)
    except RunError:
        return None


def test_the_configs_of_a_sweep_are_read_as_they_are() -> None:
    config = compose("train", ()).check().config
    alike, draws = Alike(), random.Random(0)
    for number in range(30):
        config["seed"], config["optimizer"]["lr"] = number, draws.choice([1e-3, 3e-4, 1.0])
        config["prompt"] = draws.choice(["\n", "a: b", "it's", "", "x" * 200, "two\nlines"])
        config["trainer"]["max"] = draws.choice(["1 epochs", "300 steps", None])
        text = yaml.safe_dump(config, sort_keys=False)
        assert alike.leaves(text) == alone(text)


@pytest.mark.parametrize("value", ODD)
def test_any_line_means_what_it_means_in_its_place(value: str) -> None:
    base = "a:\n  b: 1\n  c:\n    d: x\n  e: {f: 1, g: 2}\n  h:\n  - i: 1\n    j: 2\nk: last\n"
    for line in range(base.count("\n")):
        lines = base.split("\n")
        lines[line] = f"{lines[line].partition(':')[0]}: {value}"
        text = "\n".join(lines)
        alike = Alike()
        alike.leaves(base)
        assert read(alike, text) == alone(text), text


def test_what_is_alike_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    alike, calls = Alike(), []
    load = yaml.load
    monkeypatch.setattr(yaml, "load", lambda text, **options: calls.append(text) or load(text, **options))
    for lr in (1, 2, 3, 1):
        assert alike.leaves(f"a:\n  lr: {lr}\nb: 2\n") == {"a.lr": lr, "b": 2}
    assert calls == ["a:\n  lr: 1\nb: 2\n", "key: 2", "key: 3"]
