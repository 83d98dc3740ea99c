"""How parameters start.

A scheme has one rule for matrices, tables and convolutions, and rules of their own for the parts it names. The other
parameters start as their blocks say (norms at one), biases at zero.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from mlplatform.errors import SpecError
from mlplatform.registry import NonNegativeFloat, PositiveFloat, Spec, block

MATRICES = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)
FANS = ("fan_in", "fan_out", "fan_sum")
Lend = Callable[[nn.Module, bool], contextlib.AbstractContextManager[Any]]
"""Makes the parameters of a module whole while they are filled, and with True those of its parts too."""


@block("init/normal")
class Normal:
    """N(mean, spread^2) with spread = std / sqrt(the product of `over`): GPT-2, BERT, T5, CLIP and most others.

    Args:
        std: HF's `initializer_range`.
        over: numbers, or what is known where a parameter stands: `dim` and `depth` of its tower, `head_dim` of its
            attention; `fan_in`, `fan_out` and their sum `fan_sum` of its matrix (a convolution's times its kernel).
            `[fan_in]` is LeCun's rule, `[0.5, fan_in]` He's, `[0.5, fan_sum]` Glorot's.
        mean: of the distribution.
        parts: rules for the parameters whose paths fit a pattern (`"*.attention.[qkv].weight"`), biases and vectors
            among them; of several that fit the last.
    """

    def __init__(
        self,
        *,
        std: NonNegativeFloat = 0.02,
        over: list[PositiveFloat | Literal["dim", "depth", "head_dim", "fan_in", "fan_out", "fan_sum"]] = [],  # noqa: B006  (read as data, never changed)
        mean: float = 0.0,
        parts: dict[str, Annotated[Spec, "init"]] | None = None,
    ) -> None:
        self.std, self.over, self.mean = std, over, mean
        self.parts: dict[str, Normal] = {pattern: rule.build() for pattern, rule in (parts or {}).items()}

    def rule(self, name: str) -> Normal | None:
        """Return the rule of the last pattern that fits a parameter's path in the scheme's own model."""
        return next((self.parts[p] for p in reversed(self.parts) if fnmatchcase(name, p)), None)

    def fill(self, parameter: Tensor, around: list[nn.Module]) -> None:
        """Fill a parameter; `around` are the modules it stands in, its own first."""
        spread = self.std / math.sqrt(math.prod(known(name, parameter, around) for name in self.over))
        self.draw(parameter, spread)

    def draw(self, parameter: Tensor, spread: float) -> None:
        if spread == 0:
            nn.init.constant_(parameter, self.mean)
        else:
            nn.init.normal_(parameter, self.mean, spread)


@block("init/uniform")
class Uniform(Normal):
    """A uniform distribution of the same mean and spread; the fields are `normal`'s.

    `over: [3, fan_in]` with `std: 1.0` is torch's own rule, from -1 / sqrt(fan_in) to 1 / sqrt(fan_in).
    """

    def draw(self, parameter: Tensor, spread: float) -> None:
        reach = math.sqrt(3) * spread
        nn.init.uniform_(parameter, self.mean - reach, self.mean + reach)


def known(name: float | str, parameter: Tensor, around: list[nn.Module]) -> float:
    """Return the number `over` names at a parameter."""
    if not isinstance(name, str):
        return float(name)
    if name in FANS:
        matrix = getattr(around[0], "weight", parameter)  # of a bias: its matrix's
        if not isinstance(matrix, Tensor) or matrix.ndim < 2:
            raise SpecError(f"init: {name} is a matrix's, and {type(around[0]).__name__} has none here")
        inner, outer = nn.init._calculate_fan_in_and_fan_out(matrix)
        return {"fan_in": inner, "fan_out": outer, "fan_sum": inner + outer}[name]
    for module in around:
        for holder in (module, getattr(module, "trunk", None)):  # a head's tower stands beside it
            if hasattr(holder, name):
                return float(getattr(holder, name))
    raise SpecError(f"init: nothing that holds this {type(around[0]).__name__} has a '{name}'")


def own(module: nn.Module, deep: bool) -> contextlib.AbstractContextManager[Any]:
    """Fill the parameters a module has."""
    return contextlib.nullcontext()


@torch.no_grad()
def initialise(model: nn.Module, spec: Spec, under: str = "", lend: Lend = own) -> None:
    """Give every parameter its initial value in place, in the order of the modules.

    A part of the model that is a model itself and states its own `init` (a CLIP's towers) keeps to that.

    Args:
        under: the path of the part this is for: a new head.
        lend: where parameters are divided among processes.
    """
    schemes = dict(_schemes(spec, ""))
    settled = {id(m) for owner in model.modules() if getattr(owner, "resets_all", False) for m in owner.modules()}
    for path, module in model.named_modules():
        if under and path != under and not path.startswith(f"{under}."):
            continue
        if id(module) in settled:
            if getattr(module, "resets_all", False):
                with lend(module, True):
                    module.reset_parameters()  # type: ignore[operator]
            continue
        owner = max((at for at in schemes if not at or f"{path}.".startswith(f"{at}.")), key=len)
        with lend(module, False):
            _fill(schemes[owner], module, path[len(owner) :].lstrip("."), _around(model, path))


def _schemes(spec: Spec, path: str) -> Iterator[tuple[str, Normal]]:
    """Yield the scheme of a model and of each part that states one of its own, by path."""
    if spec["init"] is not None:
        yield path, spec.child("init").build()
    elif not path:
        yield path, Normal()
    for name in spec.data:
        part: Any = spec._argument(name, spec.data[name]) if name in spec.signature.fields else None
        if isinstance(part, Spec) and part.group == "model":
            yield from _schemes(part, f"{path}.{name}".lstrip("."))


def _around(model: nn.Module, path: str) -> list[nn.Module]:
    """Return the modules a path goes through, the last one first."""
    found = [model]
    for part in path.split(".") if path else []:
        found.append(getattr(found[-1], part))
    return found[::-1]


def _fill(scheme: Normal, module: nn.Module, path: str, around: list[nn.Module]) -> None:
    matrix = isinstance(module, MATRICES)
    if not matrix and hasattr(module, "reset_parameters"):
        module.reset_parameters()  # type: ignore[operator]
    for name, parameter in module.named_parameters(recurse=False):
        rule = scheme.rule(f"{path}.{name}".lstrip("."))
        if rule is not None:
            rule.fill(parameter, around)
        elif matrix and name == "bias":
            nn.init.zeros_(parameter)
        elif matrix:
            scheme.fill(parameter, around)
