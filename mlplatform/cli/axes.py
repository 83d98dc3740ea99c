"""Overrides that vary: Hydra's sweep grammar as the axes of a space, for `sweep` and for `--multirun`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException

from mlplatform.cli.hydra_errors import syntax_error
from mlplatform.cli.library import Library
from mlplatform.errors import SpecError, listing
from mlplatform.runs.sweeps.space import Axis, Interval, Values

MOST = 10_000
"""Values of one axis, and runs of one `--multirun`."""


def split(tokens: Iterable[str], library: Library) -> tuple[list[str], dict[str, Axis]]:
    """Return (the overrides that take one value, key -> what varies).

    Raises:
        SpecError: bad syntax, an empty axis or one of too many values, or a key that varies twice.
    """
    fixed: list[str] = []
    space: dict[str, Axis] = {}
    parser = OverridesParser.create()
    for token in tokens:
        try:
            [override] = parser.parse_overrides([token])
        except HydraException as error:
            raise syntax_error(token, error) from None
        if not override.is_sweep_override():
            fixed.append(token)
            continue
        key = override.get_key_element()
        if key in space:
            raise SpecError(f"{token}: {key} is given several values twice; write them as one list")
        space[key] = _axis(override, token, library)
    return fixed, space


def _axis(override: Override, token: str, library: Library) -> Axis:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return _interval(value, token)
    if isinstance(value, Glob):
        there = library.options(override.key_or_group)
        names = tuple(value.filter(there))
        if not names:
            raise SpecError(f"{token}: no option fits; there are {listing(there)}")
        return Values(names)
    try:
        texts = tuple(dict.fromkeys(islice(override.sweep_string_iterator(), MOST + 1)))
    except (HydraException, ValueError, TypeError) as error:
        raise syntax_error(token, error) from None
    if not texts:
        raise SpecError(f"{token}: no value is in it")
    if len(texts) > MOST:
        raise SpecError(f"{token}: over {MOST:,} values; take fewer, or a sweep of an interval(...)")
    return Values(texts)


def _interval(value: IntervalSweep, token: str) -> Interval:
    assert value.start is not None
    assert value.end is not None
    low, high = float(value.start), float(value.end)
    if low >= high:
        raise SpecError(f"{token}: its start is not below its end")
    log = "log" in value.tags
    if log and low <= 0:
        raise SpecError(f"{token}: a logarithmic interval begins above 0")
    return Interval(low, high, log=log, whole=isinstance(value.start, int) and isinstance(value.end, int))
