"""The annotations a registered constructor may use: they are the types and ranges of the YAML fields.

Nothing here imports torch, so that a config can be checked in a fraction of a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

if TYPE_CHECKING:
    from mlplatform.registry.spec import Spec

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Activation = Literal[
    "relu", "relu2", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "silu", "swish", "tanh", "sigmoid", "linear"
]
UNIT = r"(steps?|tokens?|epochs?|s|sec|seconds?|min|minutes?|h|hours?|%)"
Interval = Annotated[str, Field(pattern=rf"^\s*\d+(\.\d+)?\s*[KMBT]?\s*{UNIT}\s*$")]


@dataclass(frozen=True)
class Slot:
    """Marks a field that holds a nested spec of one group."""

    group: str


@dataclass(frozen=True)
class Overlays:
    """Marks a list of partial specs, each merged over the sibling field `of` for the layers it names."""

    of: str


@dataclass(frozen=True)
class Alternatives:
    """Marks a mapping of names to specs that may stand where the sibling field `of` stands."""

    of: str


@dataclass(frozen=True)
class Chosen:
    """Marks a string that picks one entry of the sibling field `among`."""

    among: str


if TYPE_CHECKING:

    class _Child:
        def __getitem__(self, group: str) -> type[Spec]: ...

    class _Partials:
        def __getitem__(self, of: str) -> type[list[dict[str, Any]]]: ...

    class _Named:
        def __getitem__(self, of: str) -> type[dict[str, Any]]: ...

    class _Pick:
        def __getitem__(self, among: str) -> type[str]: ...

    Child, Exceptions, Named, OneOf = _Child(), _Partials(), _Named(), _Pick()
else:

    class Child:
        """`Child["mlp"]`: a nested spec whose kind is registered in the group `mlp`."""

        def __class_getitem__(cls, group: str):
            return Annotated[dict, Slot(group)]

    class Exceptions:
        """`Exceptions["layer"]`: the layers that differ, as partial specs merged over the field `layer`."""

        def __class_getitem__(cls, of: str):
            return Annotated[list, Overlays(of)]

    class Named:
        """`Named["head"]`: named alternatives for the field `head`."""

        def __class_getitem__(cls, of: str):
            return Annotated[dict, Alternatives(of)]

    class OneOf:
        """`OneOf["heads"]`: the name of one entry of the field `heads`."""

        def __class_getitem__(cls, among: str):
            return Annotated[str, Chosen(among)]


NAMES: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "list": list,
    "tuple": tuple,
    "dict": dict,
    "None": None,
    "Any": Any,
    "Literal": Literal,
    "Positive": Positive,
    "Natural": Natural,
    "PositiveFloat": PositiveFloat,
    "NonNegativeFloat": NonNegativeFloat,
    "Fraction": Fraction,
    "Text": Text,
    "Interval": Interval,
    "Activation": Activation,
    "Child": Child,
    "Exceptions": Exceptions,
    "Named": Named,
    "OneOf": OneOf,
}
