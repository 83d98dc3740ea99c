"""`mlplatform data show|fetch`: the first samples of training, decoded; and data sets out of packages."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mlplatform.cli.arguments import Arguments, suggest
from mlplatform.cli.config import composed


def show(arguments: Arguments) -> None:
    """Print the rows a run would see first. Raises DataError when none or all of their tokens are targets."""
    arguments.plain(most=0)
    count = arguments.whole("samples", 3, least=1)
    result = composed(arguments).check()
    from mlplatform.cli.train import whole
    from mlplatform.data.preview import as_text, preview
    from mlplatform.registry import Spec

    with result.located():
        experiment = Spec.of(whole(result, arguments), "run").build()
        data = experiment.prepare(experiment.check())
    color = sys.stdout.isatty()
    for number, row in enumerate(preview(data, count), 1):
        tokens, trained = sum(s.tokens for s in row), sum(s.tokens for s in row if s.trained)
        documents = len({s.document for s in row})
        print(f"--- sample {number}: {tokens} tokens, {trained} of them targets, {documents} document(s)")
        print(as_text(row, color=color))
    print(f"--- {'dim' if color else '⟦between these⟧'}: what the loss leaves out")
    suggest(arguments.again("train"))


def fetch(arguments: Arguments) -> None:
    """Fetch a set, or list what there is."""
    from mlplatform.data.sets import fetching

    name = [*arguments.plain(most=1), None][0]
    if name is None:
        _list_sets(arguments.flag("json"))
        return
    there = fetching.is_there(fetching.named(name).name)
    folder = fetching.fetch(name)
    if arguments.flag("into"):
        fetching.copy(name, Path(arguments.text("into", "")))
    told = fetching.provenance(name)
    if arguments.flag("json"):
        print(json.dumps({**told, "folder": str(folder)}, indent=2))
        return
    rows = ", ".join(f"{count:,} rows in {split}.jsonl" for split, count in told["rows"].items())
    size = rows or f"{told['bytes'] / 1e6:,.1f} MB"
    print(f"{name}: {told['about']}\n{size}; licence: {told['licence']}")
    print(f"{'was there already' if there else 'fetched'}: {folder}/")
    suggest(f"mlplatform train data.path=fetched:{name}/train.jsonl ..." if rows else f"mlplatform import {folder} DIR")


def _list_sets(as_json: bool) -> None:
    from mlplatform.cli.runs import table
    from mlplatform.data.sets.catalogue import SETS
    from mlplatform.data.sets.fetching import is_there

    rows = [(one.name, "here" if is_there(one.name) else "", one.labels, one.about) for one in SETS.values()]
    if as_json:
        keys = ("name", "here", "labels", "about")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
    else:
        print(table([("set", "", "labels", "what"), *rows]))
    suggest("mlplatform data fetch SET")
