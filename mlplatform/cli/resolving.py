"""Resolves `${...}` in a composed config, and notes which values came out of the environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationKeyError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)
from omegaconf.grammar_parser import parse
from omegaconf.resolvers import oc

from mlplatform.cli.origins import MISSING, walk
from mlplatform.errors import did_you_mean, listing
from mlplatform.registry import join

Problems = list[tuple[str, str]]


def resolve(raw: dict[Any, Any]) -> tuple[dict[Any, Any], set[str], Problems]:
    """Return the config with every `${...}` replaced, the paths whose value came from `${oc.env:...}`, and problems.

    A value that can't be resolved stays as it is written and is among the problems; one that points at `???` is `???`.
    """
    resolver = _Resolver(raw)
    with resolver.watched_environment():
        config = resolver.mapping(raw, resolver.tree, "")
    return config, resolver.from_environment, resolver.problems


class _Resolver:
    def __init__(self, raw: dict[Any, Any]) -> None:
        self.raw = raw
        self.from_environment: set[str] = set()
        self.problems: Problems = []
        self.touched = False
        self.tree: Any = OmegaConf.create(self.parsable(raw, ""))

    @contextmanager
    def watched_environment(self) -> Iterator[None]:
        """Let `oc.env` say when it is asked; values that reach it through other interpolations are found too."""

        def env(key: str, *default: str | None) -> str | None:
            self.touched = True
            return oc.env(key, *default)

        OmegaConf.register_new_resolver("oc.env", env, replace=True)
        try:
            yield
        finally:
            OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)

    def parsable(self, raw: Any, path: str) -> Any:
        """Return a copy without the texts OmegaConf would refuse to hold; they are problems."""
        if isinstance(raw, dict):
            return {key: self.parsable(value, join(path, str(key))) for key, value in raw.items()}
        if isinstance(raw, list):
            return [self.parsable(value, join(path, str(i))) for i, value in enumerate(raw)]
        if isinstance(raw, str) and "${" in raw:
            try:
                parse(raw)
            except GrammarParseError:
                self.problems.append((path, f"{raw!r} is not an interpolation; write ${{key}} or ${{oc.env:NAME}}"))
                return None
        return raw

    def mapping(self, raw: dict[Any, Any], node: Any, path: str) -> dict[Any, Any]:
        return {key: self.value(value, node, key, path) for key, value in raw.items()}

    def value(self, raw: Any, parent: Any, key: Any, above: str) -> Any:
        path = join(above, str(key))
        if isinstance(raw, dict):
            return self.mapping(raw, parent._get_node(key), path)
        if isinstance(raw, list):
            node = parent._get_node(key)
            return [self.value(item, node, i, path) for i, item in enumerate(raw)]
        return self.leaf(raw, parent, key, path) if isinstance(raw, str) and "${" in raw else raw

    def leaf(self, raw: str, parent: Any, key: Any, path: str) -> Any:
        self.touched = False
        if any(path == bad for bad, _ in self.problems):
            return raw
        try:
            value = parent[key]
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
        except InterpolationToMissingValueError:
            return MISSING
        except (OmegaConfBaseException, RecursionError, ValueError) as error:
            self.problems.append((path, f"{raw!r} {self.reason(error)}"))
            return raw
        if self.touched:
            self.from_environment |= {path, *(below for below, _ in walk(value, path))}
        return value

    def reason(self, error: Exception) -> str:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, RecursionError):
            return "refers to itself"
        if isinstance(error, InterpolationKeyError):
            key = first.split("'")[1] if "'" in first else first
            return f"refers to '{key}', which is not there{did_you_mean(key, (p for p, _ in walk(self.raw)))}"
        if isinstance(error, UnsupportedInterpolationType):
            names = [f"oc.{n}" for n in ("env", "select", "decode", "create", "dict.keys", "dict.values", "deprecated")]
            return f"names no resolver there is; there are {listing(names)}"
        if "Environment variable" in first:
            name = first.split("'")[1]
            return f"needs the environment variable {name}; set it, or write ${{oc.env:{name},default}}"
        return f"can't be resolved: {first}"
