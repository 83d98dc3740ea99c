"""`describe`: a model's tree, parameters, FLOPs and memory, worked out on the meta device."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from torch import nn

from mlplatform.errors import SpecError, listing
from mlplatform.models import costs
from mlplatform.models.assemblies import choose_head
from mlplatform.models.building import build
from mlplatform.models.transformer import Transformer
from mlplatform.registry import Spec, expand

SILENT = ("hf", "init")
"""Fields that say nothing about the model as composed."""
INHERITED = ("norm", "layer")
"""Specs a tower builds many blocks from: each shows its own facts."""


@dataclass(frozen=True)
class Node:
    """One block of the composed model, or several identical layers of a stack."""

    name: str
    kind: str
    facts: dict[str, Any]
    """Every field with the value it has: as stated, by default, or worked out by the block."""
    stated: list[str]
    """Names of the facts the YAML states or leaves to the block, in order: those that matter to a reader."""
    parameters: int
    """Of all `copies` together."""
    copies: int = 1
    children: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Parameter:
    """Parameters of one name and shape; those of layers alike are one entry."""

    path: str
    shape: tuple[int, ...]
    copies: int
    trainable: bool

    @property
    def total(self) -> int:
        size = self.copies
        for width in self.shape:
            size *= width
        return size


@dataclass(frozen=True)
class Description:
    """What `mlplatform describe` shows. `data()` is its JSON, `text()` what a terminal gets."""

    tree: Node
    parameters: list[Parameter]
    total: int
    trainable: int
    active: int
    embedding: int
    layer: dict[str, int]
    """Parameters of one layer, by the name of its group of identical layers."""
    length: int
    """Tokens of the sequence that FLOPs and the KV cache are told for."""
    forward_flops: tuple[float, float]
    """Per token: products with matrices, and attention's own."""
    cached_numbers: int
    """Numbers the KV cache holds per token."""

    def memory(self) -> dict[str, dict[str, int]]:
        """Return bytes by precision: weights, gradients, AdamW's moments, their sum, KV cache per token and in all."""
        table = {}
        for name, (weight, gradient, moments, cached) in costs.PRECISIONS.items():
            parts = {
                "weights": self.total * weight,
                "gradients": self.trainable * gradient,
                "optimizer": self.trainable * moments,
            }
            cache = self.cached_numbers * cached
            table[name] = {
                **parts,
                "training": sum(parts.values()),
                "kv_cache_per_token": cache,
                "kv_cache": cache * self.length,
            }
        return table

    def data(self) -> dict[str, Any]:
        """Return everything as plain data for `--json`. FLOPs are per token, memory in bytes."""
        matrices, attention = self.forward_flops
        forward = matrices + attention
        return {
            "tree": asdict(self.tree),
            "parameters": {
                "total": self.total,
                "trainable": self.trainable,
                "active": self.active,
                "embedding": self.embedding,
                "layer": self.layer,
                "by_path": [{**asdict(p), "total": p.total} for p in self.parameters],
            },
            "length": self.length,
            "flops_per_token": {
                "forward_matrices": matrices,
                "forward_attention": attention,
                "forward": forward,
                "training": 3 * forward,
                "formula": " ".join(costs.FORMULA),
            },
            "memory": self.memory(),
        }

    def text(self) -> str:
        """Return the description for a terminal: the tree, then parameters, FLOPs and memory."""
        tree = [
            ("  " * depth + _called(node), node.kind, _facts(node), _count(node.parameters))
            for depth, node in _walk(self.tree)
        ]
        by_path = [
            (
                p.path,
                " x ".join(str(n) for n in p.shape) or "one number",
                "" if p.trainable else "frozen",
                f"{p.total:,}",
            )
            for p in self.parameters
        ]
        return "\n\n".join(
            [_table(tree), self._counts(), _table(by_path), self._flops_text(), self._memory_text()],
        )

    def _counts(self) -> str:
        parts = [f"{self.trainable:,} trainable" if self.trainable != self.total else "all trainable"]
        parts += [f"{self.active:,} active for a token"] if self.active != self.total else []
        parts += [f"{self.embedding:,} in tables"]
        lines = [f"parameters: {self.total:,}; {listing(parts)}"]
        if self.layer:
            lines.append(f"  a layer: {listing([f'{size:,} ({name})' for name, size in self.layer.items()], 6)}")
        return "\n".join(lines)

    def _flops_text(self) -> str:
        matrices, attention = self.forward_flops
        forward = matrices + attention
        said = (
            f"FLOPs of a token at length {self.length:,}: forward {_number(forward)} ({_number(matrices)} matrices, "
            f"{_number(attention)} attention), training {_number(3 * forward)}"
        )
        return "\n  ".join([said, *costs.FORMULA])

    def _memory_text(self) -> str:
        cached = f"KV cache at {self.length:,}"
        rows = [("memory", "weights", "gradients", "AdamW", "sum", "KV cache a token", cached)]
        for name, sizes in self.memory().items():
            shown = [_bytes(size) if size or not key.startswith("kv") else "none" for key, size in sizes.items()]
            rows.append((name, *shown))  # type: ignore[arg-type]
        return _table(rows)


def describe(spec: Mapping[str, Any] | Spec, length: int | None = None) -> Description:
    """Describe the model of a spec without giving it memory.

    Args:
        length: tokens of the sequence FLOPs and the KV cache are told for; the tower's context_length when None.

    Raises:
        SpecError: every problem of the spec, as `build` does; a length the model can't take.
    """
    checked = Spec.of(spec, "model", "model")
    model = build(checked, device="meta")
    if length is None:
        length = max((m.context_length for m in model.modules() if isinstance(m, Transformer)), default=1)
    if length < 1:
        raise SpecError(f"length={length}: a sequence has at least 1 token")
    matrices, attention = costs.forward_flops(model, length)
    tree = _node("model", model, checked, None)
    stacks = [node for _, node in _walk(tree) if node.copies > 1 or node.name.startswith("layers ")]
    return Description(
        tree=tree,
        parameters=parameters_by_path(model),
        total=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        active=costs.active_parameters(model),
        embedding=costs.embedding_parameters(model),
        layer={node.name: node.parameters // node.copies for node in stacks},
        length=length,
        forward_flops=(matrices / length, attention / length),
        cached_numbers=costs.cached_numbers(model),
    )


def parameters_by_path(model: nn.Module) -> list[Parameter]:
    """Return the parameters in order, those of layers alike folded: `trunk.layers.0-31.attention.q.weight`."""
    groups: dict[tuple[str, str, tuple[int, ...], bool], list[int]] = {}
    for name, parameter in model.named_parameters():
        before, number, after = [*re.split(r"\.(\d+)\.", name, maxsplit=1), "", ""][:3]
        key = (before, after, tuple(parameter.shape), parameter.requires_grad)
        groups.setdefault(key, []).append(int(number or -1))
    return [
        Parameter(f"{before}.{ranges(numbers)}.{after}" if after else before, shape, len(numbers), trainable)
        for (before, after, shape, trainable), numbers in groups.items()
    ]


def ranges(numbers: list[int]) -> str:
    """Return ascending numbers in short: `0-31`, `0-2,4-6`, and `3::4` for every fourth."""
    steps = {b - a for a, b in pairwise(numbers)}
    if len(numbers) > 2 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]}-{numbers[-1]}:{steps.pop()}"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _node(name: str, module: nn.Module, spec: Spec | None, norm: Spec | None) -> Node:
    """Return the node of a registered module; `norm` is the spec of the norms of its tower."""
    norm = getattr(module, "norm_spec", norm)
    facts, stated = ({}, []) if spec is None else _facts_of(module, spec)
    children = list(_children(module, spec, norm))
    size = sum(p.numel() for p in module.parameters())
    return Node(name, _kind(module) or type(module).__name__, facts, stated, size, 1, children)


def _children(module: nn.Module, spec: Spec | None, norm: Spec | None) -> Iterator[Node]:
    for name, child in module.named_children():
        norm = getattr(child, "norm_spec", norm)  # a head takes the norm of the tower before it
        if isinstance(child, nn.ModuleList):
            yield from _stack(name, child, _specs_of_list(name, child, spec), norm)
        elif isinstance(child, nn.ModuleDict):
            inner = spec[name] if spec is not None and name in spec.signature.fields else {}
            for key, part in child.items():
                yield _node(f"{name}.{key}", part, _spec_at(inner, key, part), norm)
        elif _kind(child):
            own = _child_spec(name, child, spec)
            yield _node(name, child, norm if own is None and _group(child) == "norm" else own, norm)


def _kind(module: nn.Module) -> str:
    """Return the registered kind of a module, empty for a part that is none."""
    return str(getattr(module, "kind", ""))


def _group(module: nn.Module) -> str:
    return str(getattr(module, "group", ""))


def _stack(name: str, modules: nn.ModuleList, specs: list[Spec | None], norm: Spec | None) -> Iterator[Node]:
    """Yield one node for each set of layers that are alike, in the order of their first layer."""
    alike: dict[str, list[int]] = {}
    for number, (module, spec) in enumerate(zip(modules, specs, strict=True)):
        shapes = [(n, tuple(p.shape), p.requires_grad) for n, p in module.named_parameters()]
        settings = None if spec is None else spec.data
        alike.setdefault(json.dumps([settings, shapes], sort_keys=True, default=str), []).append(number)
    for numbers in alike.values():
        one = _node(f"{name} {ranges(numbers)}", modules[numbers[0]], specs[numbers[0]], norm)
        size = one.parameters * len(numbers)
        yield Node(one.name, one.kind, one.facts, one.stated, size, len(numbers), one.children)


def _specs_of_list(name: str, modules: nn.ModuleList, spec: Spec | None) -> list[Spec | None]:
    """Return the spec of each module of a list: a tower's expanded layers, or the entries of a field."""
    if spec is not None and name == "layers" and "layer" in spec.data:
        layer = spec.child("layer")
        expanded = expand(layer.data, spec["exceptions"], len(modules))
        return [Spec(data, layer.path, layer.group) for data in expanded]
    entries = spec[name] if spec is not None and name in spec.signature.fields else []
    return [_spec_at(entries, i, module) for i, module in enumerate(modules)]


def _spec_at(entries: Any, key: Any, module: nn.Module) -> Spec | None:
    try:
        return Spec(entries[key], str(key), _group(module))
    except (LookupError, TypeError, ValueError):
        return None


def _child_spec(name: str, child: nn.Module, spec: Spec | None) -> Spec | None:
    """Return the spec a child was built from: the field of its name, or the head its name picks."""
    if spec is None or name not in spec.signature.fields:
        return None
    value = spec[name]
    if isinstance(value, str) and "heads" in spec.signature.fields:
        return choose_head(value, spec["heads"])
    return spec.child(name) if isinstance(value, Mapping) else None


def _facts_of(module: nn.Module, spec: Spec) -> tuple[dict[str, Any], list[str]]:
    """Return a block's fields with their values in effect, and which of them a reader wants to see."""
    facts: dict[str, Any] = {}
    stated = []
    for name, known in spec.signature.fields.items():
        value, built = spec[name], getattr(module, name, None)
        below = isinstance(built, (nn.ModuleDict, nn.ModuleList)) or (isinstance(built, nn.Module) and _kind(built))
        below = below or (name in INHERITED and isinstance(value, Mapping))
        if below or name in SILENT or "Named" in known.text or "Exceptions" in known.text:
            continue
        if isinstance(value, Mapping) and "kind" in value:  # a nested block that is no module of its own: RoPE scaling
            value = _in_line(spec.child(name))
        elif value is None and isinstance(built, (int, float)):
            value = built
            stated.append(name)
        facts[name] = value
        if name in spec.data and value is not None and name not in stated:
            stated.append(name)
    return facts, stated


def _in_line(spec: Spec) -> dict[str, Any]:
    return {"kind": spec.kind, **{name: spec[name] for name in spec.signature.fields}}


def _walk(node: Node, depth: int = 0) -> Iterator[tuple[int, Node]]:
    yield depth, node
    for child in node.children:
        yield from _walk(child, depth + 1)


def _called(node: Node) -> str:
    return f"{node.name} (x{node.copies})" if node.copies > 1 else node.name


def _facts(node: Node) -> str:
    return " ".join(f"{name}={plain(node.facts[name])}" for name in node.stated)


def plain(value: Any) -> str:
    """Return a value as YAML would write it in one line."""
    if isinstance(value, Mapping):
        kind = str(value.get("kind", ""))
        inner = ", ".join(f"{k}={plain(v)}" for k, v in value.items() if k != "kind" and v is not None)
        return f"{kind}({inner})"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(value: int) -> str:
    return _number(value).replace("G", "B") if value else ""


def _number(value: float) -> str:
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _bytes(value: float) -> str:
    for size, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g} B"


def _table(rows: list[Any]) -> str:
    """Return rows of text in columns: the last one flush right, the others left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        lines.append("  ".join([*cells, row[-1].rjust(widths[-1])]).rstrip())
    return "\n".join(lines)
