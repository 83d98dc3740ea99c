"""The errors a user can cause. Each is one line: where, what was given, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class PlatformError(Exception):
    """A mistake in the user's input. The command line prints it without a traceback and exits with 2."""

    exit_code = 2


class SpecError(PlatformError):
    """A config that names an unknown key or block, or a value its block can't take.

    `problems` holds one (dotted path, message) pair per mistake, so that the command line can add where each value
    came from. A block's constructor raises `SpecError("heads=8 is not ...")`; whoever builds it adds the path.
    """

    def __init__(self, message: str = "", problems: Sequence[tuple[str, str]] = ()) -> None:
        self.problems: list[tuple[str, str]] = list(problems) or [("", message)]
        super().__init__("\n".join(f"{path}: {text}" if path else text for path, text in self.problems))

    def below(self, path: str) -> SpecError:
        """Return the same error with `path` put before the problems that have no path yet."""
        return SpecError(problems=[(own or path, text) for own, text in self.problems])


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
