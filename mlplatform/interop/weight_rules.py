"""`hf.weights` as data that works in both directions: which of their tensors each of our parameters is made from.

A rule's left side names our module or parameter, its right side theirs; a module's rule carries its own parameters
(`weight`, `bias`) along. The right side is a name, a list of names (dialects: the first one present), or an operator:

    {transposed: NAME}                          theirs is [in, out] (GPT-2's Conv1D)
    {fused: NAME}                               theirs is ours one under the other: {q,k,v} of one tensor
    {fused: NAME, groups: kv_heads}             the same, interleaved within each group of heads (GPT-NeoX, Falcon)
    {stacked: NAME.*.x}                         ours is theirs stacked on a new first axis (experts)
    {reshaped: NAME, ones: N}                   theirs has N leading axes of size one more (N < 0: fewer)
    {reshaped: NAME, ones_after: N}             theirs has N trailing axes of size one more (a 1x1 convolution)

`transposed: true` beside another operator combines. null takes an inherited rule away.

`hf.may_lack` names parts of ours that published files come without; these are initialised, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mlplatform.errors import CheckpointError, SpecError
from mlplatform.interop.templates import fill, pattern, spread

OPERATORS = ("fused", "stacked", "reshaped", "transposed")
Read = Callable[[str], Tensor]


@dataclass
class Piece:
    """Some parameters of ours and the tensors of theirs they are made from."""

    ours: list[str]
    theirs: list[str]
    op: dict[str, Any] = field(default_factory=dict)

    def to_ours(self, read: Read, shapes: Mapping[str, torch.Size], groups: int | None) -> dict[str, Tensor]:
        """Return our tensors from theirs."""
        if "stacked" in self.op:
            return {self.ours[0]: torch.stack([self._turned(read(name)) for name in self.theirs])}
        tensor = self._turned(read(self.theirs[0]))
        if "fused" in self.op:
            return dict(zip(self.ours, _unfuse(tensor, [shapes[name] for name in self.ours], groups), strict=True))
        if "reshaped" in self.op:
            wanted = shapes[self.ours[0]]
            tensor = tensor.reshape(wanted) if tensor.numel() == wanted.numel() else tensor
        return {self.ours[0]: tensor}

    def to_theirs(self, ours: Mapping[str, Tensor], groups: int | None) -> dict[str, Tensor]:
        """Return their tensors from ours."""
        first = ours[self.ours[0]]
        if "stacked" in self.op:
            return {name: self._turned(row) for name, row in zip(self.theirs, first, strict=True)}
        if "fused" in self.op:
            first = _fuse([ours[name] for name in self.ours], groups)
        if "reshaped" in self.op:
            first = _with_ones(first, self.op)
        return {self.theirs[0]: self._turned(first)}

    def _turned(self, tensor: Tensor) -> Tensor:
        return tensor.transpose(-1, -2) if self.op.get("transposed") and tensor.dim() > 1 else tensor


class WeightRules:
    """The rules of one model, with those of the models nested in it, in the order they were written."""

    def __init__(self, rules: Iterable[tuple[str, Any]]) -> None:
        self.rules: list[tuple[list[str], list[list[str]], dict[str, Any]]] = []
        for left, right in rules:
            self.rules += _compile(left, right)

    def plan(self, ours: Mapping[str, torch.Size], present: Callable[[str], bool] | None) -> list[Piece]:
        """Say for each of our parameters where it comes from.

        Args:
            ours: our parameters' shapes by name.
            present: whether their file has a tensor of that name, which decides between dialects; None when writing:
                the first dialect is written.

        Raises:
            SpecError: a parameter of ours has no rule, or two.
        """
        pieces: list[Piece] = []
        done: dict[str, str] = {}
        for lefts, dialects, op in self.rules:
            for values, suffix in _matches(lefts[0], ours):
                names = [fill(left, values) + suffix for left in lefts]
                for name in names:
                    if name in done:
                        raise SpecError(f"hf.weights: '{name}' has two rules, {done[name]} and {lefts[0]}")
                    done[name] = lefts[0]
                pieces.append(_piece(names, dialects, values, suffix, op, ours, present))
        missing = [name for name in ours if name not in done]
        if missing:
            raise SpecError(f"hf.weights: no rule gives '{missing[0]}' ({len(missing)} parameters have none)")
        return pieces

    def knows(self, theirs: str) -> bool:
        """Return whether some rule could stand for a tensor of theirs."""
        for _, dialects, _ in self.rules:
            for names in dialects:
                for name in names:
                    if pattern(name).match(theirs) or pattern(name).match(theirs.rpartition(".")[0]):
                        return True
        return False


def _compile(left: str, right: Any) -> list[tuple[list[str], list[list[str]], dict[str, Any]]]:
    op = dict(right) if isinstance(right, Mapping) else {}
    word = next((o for o in OPERATORS if isinstance(op.get(o), (str, list))), None)
    if op and word is None:
        raise SpecError(f"hf.weights: {left}: an operator is one of {', '.join(OPERATORS)}, not {sorted(op)}")
    target = op[word] if word else right
    options = [target] if isinstance(target, str) else list(target)
    if word:
        op[word] = True
    lefts = spread(left)
    if word == "fused":
        return [(lefts, [[option] for option in options], op)]
    spreads = [spread(option) for option in options]
    for names in spreads:
        if len(names) != len(lefts):
            raise SpecError(f"hf.weights: {left} names {len(lefts)} of ours, the other side {len(names)} of theirs")
    return [([own], [[names[i]] for names in spreads], op) for i, own in enumerate(lefts)]


def _matches(left: str, ours: Iterable[str]) -> list[tuple[tuple[str, ...], str]]:
    """Return (values of the stars, suffix) for each of our names the template or its module covers."""
    found = []
    exact = pattern(left)
    for name in ours:
        if match := exact.match(name):
            found.append((match.groups(), ""))
        elif not left.endswith("**"):
            module, _, last = name.rpartition(".")
            if match := exact.match(module):
                found.append((match.groups(), f".{last}"))
    return found


def _piece(
    names: list[str],
    dialects: list[list[str]],
    values: tuple[str, ...],
    suffix: str,
    op: dict[str, Any],
    ours: Mapping[str, torch.Size],
    present: Callable[[str], bool] | None,
) -> Piece:
    options = []
    for (template,) in dialects:
        theirs = [fill(template, values) + suffix]
        if "stacked" in op:
            theirs = [fill(theirs[0], (str(i),)) for i in range(ours[names[0]][0])]
        options.append(theirs)
    chosen = options[0]
    if present is not None:
        chosen = next((o for o in options if present(o[0])), options[0])
    return Piece(names, chosen, op)


def _unfuse(tensor: Tensor, shapes: list[torch.Size], groups: int | None) -> list[Tensor]:
    rows = [shape[0] for shape in shapes]
    if sum(rows) != tensor.shape[0]:
        raise CheckpointError(f"a fused tensor of {tensor.shape[0]} rows can't be split into {rows}")
    if groups is None:
        return list(tensor.split(rows))
    grouped = tensor.reshape(groups, -1, *tensor.shape[1:])
    parts = grouped.split([r // groups for r in rows], 1)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _fuse(tensors: list[Tensor], groups: int | None) -> Tensor:
    if groups is None:
        return torch.cat(tensors)
    return torch.cat([t.reshape(groups, -1, *t.shape[1:]) for t in tensors], 1).flatten(0, 1)


def _with_ones(tensor: Tensor, op: Mapping[str, Any]) -> Tensor:
    before, after = op.get("ones", 0), op.get("ones_after", 0)
    if before < 0:
        return tensor.reshape(tensor.shape[-before:])
    return tensor.reshape((1,) * before + tuple(tensor.shape) + (1,) * after)
