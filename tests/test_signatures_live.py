"""What we pass is what the installed libraries take: a renamed argument shows here, not at a user's.

Every call of a class or function of another library that our source makes is bound to that thing's live signature.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlplatform import places
from mlplatform.cli.compose import compose, compose_model
from mlplatform.cli.library import Library
from mlplatform.places import PACKAGE
from mlplatform.registry.targets import TARGET_GROUPS, resolve_target

GROUPS = sorted(g for g in Library().groups() if "/" not in g and g not in ("model", "recipes"))
BLOCKS = sorted(g for g in Library().groups() if g.startswith("block/"))
NEEDED = {"data": ["data.path=x"], "tokenizer": ["tokenizer.path=x"], "processor": ["processor.path=x"]}
BESIDE = {
    "tokenizer=sentinel_bpe": ["model=t5_tiny"],
    "data=coco": ["data.images=x"],
    "data=mixture": ["data.parts={x: {kind: text, path: x}}", "data.weights={x: 1}"],
    "teacher=folder": ["teacher.source=x"],
    "processor=image": ["model=vit_tiny", "tokenizer=null"],
    "processor=vision": ["model=llava_tiny", "tokenizer=visual_bpe"],
    "tokenizer=visual_bpe": ["model=llava_tiny"],
}
"""What an option goes with, where that is not the default run."""


# ---- every shipped YAML ----
def test_the_default_run() -> None:
    compose("train").check()


@pytest.mark.parametrize("option", [(g, o) for g in GROUPS for o in Library().options(g)], ids="=".join)
def test_every_option_fits_a_run(option: tuple[str, str]) -> None:
    group, name = option
    missing = [path for path in NEEDED.get(group, []) if _lacks_path(group, name)]
    compose("train", [f"{group}={name}", *missing, *BESIDE.get(f"{group}={name}", [])]).check()


@pytest.mark.parametrize("name", Library().options("model"))
def test_every_model_fits(name: str) -> None:
    compose_model(name).check()


@pytest.mark.parametrize("name", Library().options("recipes"))
def test_every_recipe_fits(name: str) -> None:
    compose("train", [f"recipes={name}"]).check()


@pytest.mark.parametrize("option", [(g, o) for g in BLOCKS for o in Library().options(g)], ids="=".join)
def test_every_block_option_fits_its_kind(option: tuple[str, str]) -> None:
    from mlplatform.registry import validate

    group, name = option
    document = Library().document(f"{group}/{name}")
    assert document is not None
    validate({k: v for k, v in document.data.items() if k != "defaults"}, group.removeprefix("block/"), group)


def test_every_shipped_target_takes_what_it_is_given() -> None:
    for file in [*places.conf().rglob("*.yaml"), *places.recipes().rglob("*.yaml")]:
        for node in _targets(yaml.safe_load(file.read_text())):
            [group] = [g for g, allowed in TARGET_GROUPS.items() if node["_target_"].startswith(allowed)]
            target = resolve_target(node["_target_"], group, str(file))
            inspect.signature(target).bind_partial(**{k: v for k, v in node.items() if k != "_target_"})


def _targets(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict) and "_target_" in node:
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _targets(child)


def _lacks_path(group: str, name: str) -> bool:
    document = Library().document(f"{group}/{name}")
    return document is not None and document.data.get("path") == "???"


# ---- every call of theirs in our source ----
def calls(file: Path) -> Iterator[tuple[int, str, Any, ast.Call]]:
    """Yield (line, name, the thing called, the call) for every call of what a library other than ours made."""
    name = ".".join(("mlplatform", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    tree = ast.parse(file.read_text())
    known = {**vars(importlib.import_module(name)), **_local_imports(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (thing := _resolve(node.func, known)) is not None:
            home = getattr(thing, "__module__", None) or ""
            if callable(thing) and home.split(".")[0] not in ("mlplatform", "builtins", ""):
                yield node.lineno, ast.unparse(node.func), thing, node


def _local_imports(tree: ast.AST) -> dict[str, Any]:
    """Return what is imported inside functions, of other libraries."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(("mlplatform", "__future__")):
            module = importlib.import_module(node.module or "")
            found |= {a.asname or a.name: getattr(module, a.name) for a in node.names if hasattr(module, a.name)}
    return found


def _resolve(node: ast.expr, known: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        holder = _resolve(node.value, known)
        return getattr(holder, node.attr, None) if inspect.ismodule(holder) or inspect.isclass(holder) else None
    return None


def bound(thing: Any, call: ast.Call) -> bool | str:
    """Return whether a call fits: True, False where there is no signature to ask, or what is wrong."""
    try:
        signature = inspect.signature(thing)
    except (ValueError, TypeError):
        return False
    starred = any(isinstance(a, ast.Starred) for a in call.args)
    if isinstance(thing, type(lambda: 0)) and "self" in list(signature.parameters)[:1]:
        return False  # a method taken from its class
    places_ = () if starred else (None,) * len(call.args)
    try:
        signature.bind_partial(*places_, **{k.arg: None for k in call.keywords if k.arg})
    except TypeError as error:
        return str(error)
    return True


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_every_call_of_a_library_fits_its_live_signature(file: Path) -> None:
    for line, name, thing, call in calls(file):
        result = bound(thing, call)
        assert result is True or result is False, f"{file}:{line}: {name}: {result}"


def test_the_calls_that_matter_are_among_those_checked() -> None:
    """A guard of the guard: it sees the trainer and the optimizers, and would see a renamed argument."""
    checked = {
        name.split(".")[-1]
        for file in (PACKAGE / "training").rglob("*.py")
        for _, name, thing, call in calls(file)
        if call.keywords and bound(thing, call) is True
    }
    assert {"Trainer", "AdamW", "Adafactor", "DDPStrategy"} <= checked
    import torch

    [wrong] = [n for n in ast.walk(ast.parse("AdamW(p, learning_rate=1)")) if isinstance(n, ast.Call)]
    assert "learning_rate" in str(bound(torch.optim.AdamW, wrong))


def test_methods_of_the_trainer_take_what_we_pass() -> None:
    import lightning.pytorch as L

    tree = ast.parse((PACKAGE / "training" / "engine.py").read_text())
    fits = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "engine.fit"]
    assert fits
    for call in fits:
        inspect.signature(L.Trainer(logger=False, accelerator="cpu").fit).bind_partial(
            *([None] * len(call.args)), **{k.arg: None for k in call.keywords if k.arg}
        )


def test_hooks_we_define_are_hooks_lightning_calls() -> None:
    """A hook that Lightning renames would never be called again, without a word."""
    seen = 0
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(("mlplatform", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for thing in vars(importlib.import_module(name)).values():
            if not inspect.isclass(thing) or thing.__module__ != name:
                continue
            theirs = [base for base in thing.__mro__ if base.__module__.startswith("lightning.")]
            hooks = [
                n for n in vars(thing) if n.startswith(("on_", "configure_")) or n.endswith(("_step", "_dataloader"))
            ]
            for hook in hooks if theirs else []:
                base = next((b for b in theirs if hook in vars(b)), None)
                assert base is not None, f"{name}.{thing.__name__}.{hook}: no class of Lightning's calls it"
                live = inspect.signature(vars(base)[hook]).parameters.values()
                if all(p.kind is p.POSITIONAL_OR_KEYWORD for p in live):
                    inspect.signature(vars(thing)[hook]).bind(*live)  # raises where it takes fewer or needs more
                seen += 1
    assert seen >= 10
