"""`mlplatform config show|why|schema|groups`: what a run would get, and where each value came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from mlplatform.cli.arguments import Arguments, suggest
from mlplatform.cli.compose import Composed, compose
from mlplatform.cli.library import Library
from mlplatform.cli.origins import is_leaf, select, walk
from mlplatform.errors import SpecError, did_you_mean, listing


def composed(arguments: Arguments) -> Composed:
    """Compose what the command line says, without validating it."""
    return compose("train", arguments.overrides(), arguments.options.get("config-dir", ()))


def show(arguments: Arguments) -> None:
    """Print the resolved config, or the part under a key, as YAML; what is wrong with it comes after."""
    key = ([*arguments.plain(most=1), ""])[0]
    result = composed(arguments)
    value = select(result.masked(), key)
    print(json.dumps(value, indent=2) if arguments.flag("json") else as_yaml(value).rstrip("\n"))
    result.check()
    suggest(arguments.again(f"config why {key or 'optimizer.lr'}"), arguments.again("train --dry-run"))


def why(arguments: Arguments) -> None:
    """Print for a value, or for every value below a key, what set it and what that shadowed."""
    [key] = arguments.plain(most=1, least=1)
    result = composed(arguments)
    held = select(result.config, key)
    paths = [key] if is_leaf(held) else [path for path, value in walk(held, key) if is_leaf(value)]
    rows = [_row(result, path) for path in paths]
    if arguments.flag("json"):
        print(json.dumps(rows, indent=2))
    else:
        _print_rows(rows, single=is_leaf(held))
    suggest(arguments.again(f"config show {key}"))


def _row(result: Composed, path: str) -> dict[str, Any]:
    hidden = path in result.from_environment
    history = result.origins.get(path, [])
    row: dict[str, Any] = {"key": path, "value": select(result.masked() if hidden else result.config, path)}
    if history and history[-1].value != row["value"] and not hidden:
        row["written"] = history[-1].value
    nearest = result.origin(path)
    row["set_by"] = history[-1].place if history else nearest.place if nearest else None
    row["shadowed"] = [
        {"value": o.value if o.value is not ... else "{...}", "set_by": o.place} for o in history[-2::-1]
    ]
    return row


def _print_rows(rows: list[dict[str, Any]], *, single: bool) -> None:
    width = 0 if single else max(len(f"{row['key']}: {flow(row['value'])}") for row in rows)
    for row in rows:
        written = f"  written as {flow(row['written'])}" if "written" in row else ""
        text = f"{row['key']}: {flow(row['value'])}"
        if single:
            print(f"{text}\n  set by    {row['set_by']}{written}")
            for old in row["shadowed"]:
                print(f"  shadowed  {flow(old['value'])}  {old['set_by']}")
        else:
            old = "; ".join(f"{flow(o['value'])} {o['set_by']}" for o in row["shadowed"])
            print(f"{text:<{min(width, 70)}}  {row['set_by']}{written}{f'  (shadowed {old})' if old else ''}")


def schema(arguments: Arguments) -> None:
    """Print the JSON Schema of a group's YAML files, or write all of them into a folder."""
    from mlplatform.registry import json_schema, kinds

    groups = sorted({kind.group for kind in kinds().values()})
    given = arguments.plain(most=1)
    if given and given[0] not in groups:
        raise SpecError(f"no group '{given[0]}'{did_you_mean(given[0], groups)}; there are {listing(groups, 60)}")
    if not arguments.flag("write"):
        group = given[0] if given else "run"
        print(json.dumps(json_schema(group), indent=2))
        suggest(f"mlplatform config schema --write schemas, then '{hint('schemas', group)}' on a YAML's first line")
        return
    folder = Path(arguments.text("write", ""))
    folder.mkdir(parents=True, exist_ok=True)
    for group in given or groups:
        (folder / f"{group}.schema.json").write_text(json.dumps(json_schema(group), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {len(given or groups)} schemas to {folder}/; let a YAML begin with")
    print(hint(str(folder), (given or ["model"])[0]))
    suggest("mlplatform config groups")


def hint(folder: str, group: str) -> str:
    """Return the line that tells an editor's YAML language server which schema a file has."""
    return f"# yaml-language-server: $schema={folder}/{group}.schema.json"


def groups(arguments: Arguments) -> None:
    """List every group of options, or one group's options with what each is."""
    library = Library(arguments.options.get("config-dir", ()))
    given = arguments.plain(most=1)
    if given and given[0] not in library.groups():
        near = did_you_mean(given[0], library.groups())
        raise SpecError(f"no group '{given[0]}'{near}; there are {listing(library.groups(), 60)}")
    found = {group: library.options(group) for group in given or library.groups()}
    if arguments.flag("json"):
        print(json.dumps(found, indent=2))
    elif given:
        width = max(len(option) for option in found[given[0]])
        for option in found[given[0]]:
            print(f"{option:<{width}}  {_first_line(library, given[0], option)}")
    else:
        width = max(len(group) for group in found)
        for group, options in found.items():
            print(f"{group:<{width}}  {', '.join(options)}")
    suggest(f"mlplatform config groups {given[0] if given else 'model'}", "mlplatform train GROUP=OPTION")


def _first_line(library: Library, group: str, option: str) -> str:
    """Return what a file's opening comment says it is."""
    for folder in library.folders:
        path = folder.within(f"{group}/{option}.yaml")
        if path is not None and path.is_file():
            lines = [
                line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")
            ]
            return next((line for line in lines if not line.startswith(("@package", "yaml-language-server"))), "")
    return ""


def as_yaml(value: Any) -> str:
    """Return a value as YAML text, short lists and mappings without children on one line."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True, default_flow_style=None)
    return text.removesuffix("...\n")


def flow(value: Any) -> str:
    """Return a value as it could be written on one line of YAML."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
