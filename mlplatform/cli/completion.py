"""`mlplatform completion bash|zsh`: a script that asks `mlplatform --words ...` what may stand at the cursor."""

from __future__ import annotations

from collections.abc import Sequence

from mlplatform.cli.arguments import Arguments, Verb, suggest
from mlplatform.errors import PlatformError, SpecError

BASH = """\
_mlplatform() {
  local line="${COMP_LINE:0:COMP_POINT}" words
  read -ra words <<< "$line"
  [[ $line == *' ' ]] && words+=("")
  mapfile -t COMPREPLY < <(mlplatform --words "${words[@]:1}" 2>/dev/null)
  [[ ${words[-1]} == *=* ]] && COMPREPLY=("${COMPREPLY[@]#*=}")  # bash takes what follows '=' for a word of its own
  [[ ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace
}
complete -F _mlplatform mlplatform"""
ZSH = """\
_mlplatform() {
  local -a found
  found=("${(@f)$(mlplatform --words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  compadd -S '' -- $found
}
compdef _mlplatform mlplatform"""
SCRIPTS = {"bash": (BASH, "~/.bashrc"), "zsh": (ZSH, "~/.zshrc")}


def script(arguments: Arguments) -> None:
    """Print the completion script of a shell."""
    [shell] = arguments.plain(most=1, least=1)
    if shell not in SCRIPTS:
        raise SpecError(f"completion {shell}: there are {' and '.join(SCRIPTS)}")
    text, file = SCRIPTS[shell]
    print(text)
    suggest(f"echo 'source <(mlplatform completion {shell})' >> {file}")


def candidates(verbs: Sequence[Verb], words: Sequence[str]) -> list[str]:
    """Return what may stand in the place of the last word."""
    *before, current = words or [""]
    names = [verb.name.split() for verb in verbs]
    verb = next((v for v in verbs if v.name.split() == before[: len(v.name.split())]), None)
    if verb is None:
        found = {name[len(before)] for name in names if name[: len(before)] == before and len(name) > len(before)}
    elif current.startswith("-"):
        found = {f"--{option.name}" for option in verb.options}
    elif "OVERRIDES" in verb.usage:
        found = _overrides(current, "KEY" in verb.usage)
    else:
        found = set()
    return sorted(word for word in found if word.startswith(current))


def _overrides(current: str, keys: bool) -> set[str]:
    """Return group choices and the keys one level below what is typed."""
    from mlplatform.cli.compose import compose
    from mlplatform.cli.library import Library
    from mlplatform.cli.origins import is_leaf, walk

    try:
        library = Library()
        if "=" in current:
            group = current.partition("=")[0]
            return {f"{group}={option}" for option in library.options(group)}
        paths = {path: value for path, value in walk(compose().config) if path.count(".") == current.count(".")}
    except PlatformError:
        return set()
    groups = {f"{group}=" for group in library.groups() if "/" not in group or current}
    below = {path if keys else f"{path}=" if is_leaf(value) else f"{path}." for path, value in paths.items()}
    return below | groups
