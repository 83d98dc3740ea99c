"""Which parts of a model train, by path patterns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from types import MethodType

from torch import nn

from mlplatform.errors import SpecError, did_you_mean, listing


def freeze(model: nn.Module, patterns: Sequence[str], key: str = "freeze") -> None:
    """Take parameters out of training: they get no gradient, no optimizer state and no decay.

    Args:
        patterns: of the names of parameters or of modules (`trunk.input`, `vision.*`, `*.layers.0`), read in order;
            one that starts with `!` lets what it names train after all: `["*", "!head"]` is a linear probe.
        key: of the config the patterns stand under, for messages.

    Batch norms of a frozen part keep their running statistics, and routers their corrections.

    Raises:
        SpecError: a pattern names nothing.
    """
    able = {id(p) for p in model.parameters() if p.requires_grad}  # a router's correction never takes a gradient
    for pattern in patterns:
        chosen = named(model, pattern.removeprefix("!"))
        if not chosen:
            raise SpecError(problems=[(key, nothing(model, pattern))])
        for parameter in chosen:
            parameter.requires_grad_(pattern.startswith("!") and id(parameter) in able)
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if hasattr(module, "running_mean") and own and not any(p.requires_grad for p in own):
            module.train = MethodType(_stay, module)  # type: ignore[method-assign]
            module.train()


def named(model: nn.Module, pattern: str) -> list[nn.Parameter]:
    """Return the parameters a pattern names, by their own name or by that of a module they are in."""
    return [p for name, p in model.named_parameters() if matches(name, [pattern])]


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns names this path, or one above it."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for pattern in patterns)


def nothing(model: nn.Module, pattern: str) -> str:
    """Return the message for a pattern that names nothing."""
    paths = [name for name, _ in model.named_modules() if name] + [name for name, _ in model.named_parameters()]
    near = did_you_mean(pattern.removeprefix("!"), paths)
    there = listing([name for name, _ in model.named_modules() if name and name.count(".") < 2], 8)
    return f"'{pattern}' names no parameter of the model{near}; it has {there}"


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)
