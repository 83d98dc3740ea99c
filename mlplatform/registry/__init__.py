"""The registry: kinds and their signatures, the checked config tree, JSON Schema."""

from mlplatform.registry.checking import check_spec, join, validate
from mlplatform.registry.layering import expand, merge, select
from mlplatform.registry.schema import json_schema
from mlplatform.registry.signatures import Field, Kind, block, kinds, lookup, use_plugins
from mlplatform.registry.spec import Spec
from mlplatform.registry.vocabulary import (
    Activation,
    Child,
    Exceptions,
    Fraction,
    Interval,
    Named,
    Natural,
    NonNegativeFloat,
    OneOf,
    Positive,
    PositiveFloat,
    Text,
)

__all__ = [
    "Activation",
    "Child",
    "Exceptions",
    "Field",
    "Fraction",
    "Interval",
    "Kind",
    "Named",
    "Natural",
    "NonNegativeFloat",
    "OneOf",
    "Positive",
    "PositiveFloat",
    "Spec",
    "Text",
    "block",
    "check_spec",
    "expand",
    "join",
    "json_schema",
    "kinds",
    "lookup",
    "merge",
    "select",
    "use_plugins",
    "validate",
]
