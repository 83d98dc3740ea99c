"""The errors a user can cause. Each is one line: where, what was given, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlatformError(Exception):
    """A mistake in the user's input. The command line prints it without a traceback and exits with 2."""

    exit_code = 2


class SpecError(PlatformError):
    """A config that names an unknown key or block, or a value its block can't take."""


class CheckpointError(PlatformError):
    """A checkpoint that is damaged, unsafe, or doesn't fit the model."""


class DataError(PlatformError):
    """Data that is missing, unreadable, or not of the shape the task needs."""


class RunError(PlatformError):
    """A run folder, launch or resume that can't be done as asked."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the nearest allowed word, or an empty string."""
    close = difflib.get_close_matches(str(word), [str(a) for a in allowed], n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def listing(words: Iterable[object], most: int = 12) -> str:
    """Join words for a message, cutting a long list: `a, b, c and 7 more`."""
    names = [str(w) for w in words]
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
