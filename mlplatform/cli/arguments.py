"""Verbs, their options, and the splitting of a command line into options and words."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from mlplatform.errors import SpecError, did_you_mean, listing


@dataclass(frozen=True)
class Option:
    """One option. `metavar` names its value and is empty for a flag."""

    name: str
    metavar: str
    summary: str
    repeat: bool = False


HELP = Option("help", "", "show this")
SHORT = {"-h": "--help", "-m": "--multirun", "-f": "--follow"}


@dataclass(frozen=True)
class Verb:
    """One command: its name (one or two words), what follows it, and the `module:function` that does it."""

    name: str
    usage: str
    summary: str
    target: str
    options: tuple[Option, ...] = ()
    examples: tuple[str, ...] = ()

    def help(self) -> str:
        """Return what `mlplatform VERB --help` prints."""
        lines = [f"mlplatform {self.name} {self.usage}".rstrip(), "", f"  {self.summary}", ""]
        shown = [(f"--{o.name} {o.metavar}".rstrip(), o.summary) for o in (*self.options, HELP)]
        width = max(len(name) for name, _ in shown)
        lines += [f"  {name:<{width}}  {summary}" for name, summary in shown]
        if "OVERRIDES" in self.usage:
            lines += ["", "  OVERRIDES are Hydra's: model=llama chooses, optimizer.lr=1e-3 sets, ~key takes out,"]
            lines += [
                "  block/mlp@model.trunk.layer.mlp=moe swaps a block. `mlplatform config groups` lists the choices."
            ]
        if self.examples:
            lines += ["", *(f"  {example}" for example in self.examples)]
        return "\n".join(lines)


@dataclass
class Arguments:
    """What was typed after the verb."""

    verb: Verb
    words: list[str] = field(default_factory=list)
    options: dict[str, list[str]] = field(default_factory=dict)

    def flag(self, name: str) -> bool:
        """Whether the option was given."""
        return name in self.options

    def text(self, name: str, default: str) -> str:
        """Return an option's value, or the default."""
        return self.options.get(name, [default])[-1]

    def number(self, name: str, default: float, least: float = 0) -> float:
        """Return an option's value as a number. Raises SpecError when it is none, or below `least`."""
        given = self.text(name, str(default))
        try:
            value = float(given)
        except ValueError:
            raise SpecError(f"--{name} {given}: it should be a number") from None
        if not least <= value < float("inf"):
            raise SpecError(f"--{name} {given}: it should be at least {least:g}")
        return value

    def whole(self, name: str, default: int, least: int = 0) -> int:
        """Return an option's value as a whole number. Raises SpecError when it is none, or below `least`."""
        value = self.number(name, default, least)
        if value != int(value):
            raise SpecError(f"--{name} {self.text(name, '')}: it should be a whole number")
        return int(value)

    def overrides(self) -> list[str]:
        """Return the words that are overrides of the config."""
        return [word for word in self.words if is_override(word)]

    def again(self, verb: str) -> str:
        """Return the command that gives these overrides to another verb, as a shell takes it."""
        folders = [word for folder in self.options.get("config-dir", ()) for word in ("--config-dir", folder)]
        return f"mlplatform {shlex.join([*verb.split(), *folders, *self.overrides()])}"

    def plain(self, most: int, least: int = 0) -> list[str]:
        """Return the words that are no overrides. Raises SpecError when there are too many or too few."""
        found = [word for word in self.words if not is_override(word)]
        takes = f"mlplatform {self.verb.name} {self.verb.usage}".rstrip()
        if len(found) > most:
            what = "key=value is how a value is set" if "OVERRIDES" in self.verb.usage else "it takes fewer words"
            raise SpecError(f"'{found[most]}' is one word too many ({what}): {takes}")
        if len(found) < least:
            raise SpecError(f"something is missing: {takes}")
        return found


def is_override(word: str) -> bool:
    """Whether a word sets, adds or deletes something in the config."""
    return "=" in word or word.startswith(("~", "+"))


def parse(verb: Verb, words: Sequence[str]) -> Arguments:
    """Split what follows a verb. Raises SpecError for an unknown option, with the nearest one."""
    known = {option.name: option for option in (*verb.options, HELP)}
    arguments, rest = Arguments(verb), list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            arguments.words += rest
            break
        word = SHORT.get(word, word)
        if not word.startswith("-") or word == "-":
            arguments.words.append(word)
            continue
        name, given, value = word.lstrip("-").partition("=")
        if name not in known or not word.startswith("--"):
            there = [f"--{option}" for option in known]
            raise SpecError(f"{verb.name} has no option '{word}'{did_you_mean(word, there)}; it has {listing(there)}")
        option = known[name]
        if option.metavar and not given:
            if not rest:
                raise SpecError(f"--{name} needs a value: --{name} {option.metavar}")
            value = rest.pop(0)
        elif given and not option.metavar:
            raise SpecError(f"--{name} takes no value")
        if name in arguments.options and not option.repeat:
            raise SpecError(f"--{name} is given twice")
        arguments.options.setdefault(name, []).append(value)
    return arguments


def suggest(*commands: str) -> None:
    """Name the next useful commands, on stderr so that what a command prints can be piped."""
    print(f"Next: {'   |   '.join(commands)}", file=sys.stderr)
