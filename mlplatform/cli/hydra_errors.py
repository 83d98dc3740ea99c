"""Hydra's complaints in one line of ours: what was given, where, and what there is."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException

from mlplatform.cli.library import Library, no_option
from mlplatform.errors import SpecError, did_you_mean, listing


def syntax_error(token: str, error: Exception) -> SpecError:
    """Return the error for a token Hydra's grammar refuses."""
    if "=" not in token and not token.startswith("~"):
        return SpecError(f"'{token}' is not an override; write it as key=value, for example optimizer.lr=1e-3")
    key, _, value = token.partition("=")
    if re.search(r"[\[\]{}(),:'\"=]", value):
        return SpecError(f"{token}: can't be read; put the value in quotes: {key}='\"{value}\"' on a shell")
    said = str(error).splitlines()
    detail = said[1] if len(said) > 1 and said[0].startswith("Error parsing") else said[0]
    return SpecError(f"{token}: can't be read ({detail.strip()}); write it as key=value, +key=value or ~key")


def refuse_sweep(token: str) -> SpecError:
    """Return the error for several values where a run takes one."""
    key, _, value = token.partition("=")
    instead = f"for a list write '{key}=[{value}]', for a text with commas \"{key}='{value}'\""
    return SpecError(f"{token}: a run takes one value; {instead}; --multirun makes a run for each")


def in_our_words(error: Exception, library: Library, overrides: Sequence[Override]) -> SpecError:
    """Return the error for a defaults list Hydra can't follow."""
    if isinstance(error, SpecError):
        return error
    if isinstance(error, RecursionError):
        return _cycle(library)
    text = " ".join(str(error).split())
    if isinstance(error, MissingConfigException):
        return _missing_option(error, library)
    if match := re.search(r"You must specify '(.+?)'", text):
        group = match[1].split("@")[0]
        return SpecError(
            f"{match[1]}: a choice is needed; give {match[1]}=... of {listing(library.options(group), 40)}"
        )
    if match := re.match(r"(?:In '(.+?)': )?Could not override '(.+?)'", text):
        return _no_default(match[1], match[2], library, overrides)
    if match := re.match(r"Could not delete '(.+?)'", text):
        return SpecError(f"~{match[1]}: the defaults lists hold no such choice")
    if match := re.match(r"(?:In '?(.+?)'?): (.+)", text):
        document = library.document(match[1])
        return SpecError(f"{document.place('defaults') if document else match[1]}: {match[2]}")
    return SpecError(text.split(" See https:")[0])


def _missing_option(error: MissingConfigException, library: Library) -> SpecError:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    text = no_option(group or "config", option, library.options(group))
    parent = re.match(r"In '(.+?)': ", str(error))
    document = library.document(parent[1]) if parent else None
    if document is None:
        return SpecError(text)
    items = document.data.get("defaults") or []
    names = [i for i, item in enumerate(items) if option in str(item)]
    return SpecError(f"{text} ({document.place(f'defaults.{names[0]}' if names else 'defaults')})")


def _no_default(parent: str | None, key: str, library: Library, overrides: Sequence[Override]) -> SpecError:
    document = library.document(parent) if parent else None
    if document is not None:
        return SpecError(f"{document.place('defaults')}: overrides '{key}', which no defaults list holds")
    token = next((o.input_line or key for o in overrides if (o.input_line or "").startswith(f"{key}=")), key)
    near = did_you_mean(key, [g for g in library.groups() if g != key])
    return SpecError(f"{token}: no defaults list holds '{key}'{near}; to add it write +{token}")


def _cycle(library: Library) -> SpecError:
    """Name the options that lead back to themselves; they end the trail of what Hydra asked for."""
    trail = [name for i, name in enumerate(library.trail) if i == 0 or name != library.trail[i - 1]]
    last = trail[-1]
    earlier = [i for i, name in enumerate(trail[:-1]) if name == last]
    circle = trail[earlier[-1] : -1] if earlier else [last]
    entry = circle.index(min(circle, key=trail.index))
    circle = [*circle[entry:], *circle[:entry], circle[entry]]
    document = library.document(circle[-2])
    place = document.place("defaults") if document else last
    return SpecError(f"{place}: the defaults lists go in a circle: {' -> '.join(circle)}")
