"""The annotations a registered constructor may use: they are the types and ranges of the YAML fields.

Nothing here imports torch, so that a config can be checked in a fraction of a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

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


Exceptions = list[dict[str, Any]]
"""`Annotated[Exceptions, "layer"]`: the layers that differ, as partial specs merged over the field `layer`."""
Named = dict[str, Any]
"""`Annotated[Named, "head"]`: named alternatives for the field `head`."""
OneOf = str
"""`Annotated[OneOf, "heads"]`: the name of one entry of the field `heads`."""


class _Mark:
    """What `Annotated[Spec, "mlp"]` and its like mean in a registered signature."""

    def __class_getitem__(cls, parts: tuple[str, str]) -> Any:
        what, name = parts
        base, mark = {
            "spec": (dict, Slot),
            "exceptions": (list, Overlays),
            "named": (dict, Alternatives),
            "one of": (str, Chosen),
        }[what]
        return Annotated[base, mark(name)]


class Child:
    """`Child["mlp"]` is short for `Annotated[Spec, "mlp"]`."""

    def __class_getitem__(cls, group: str) -> Any:
        return Annotated[dict, Slot(group)]


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
    "Annotated": _Mark,
    "Child": Child,
    "Spec": "spec",
    "Exceptions": "exceptions",
    "Named": "named",
    "OneOf": "one of",
}
