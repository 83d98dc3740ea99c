"""`mlplatform data preview|fetch`: the first samples of training, decoded; and data sets out of packages."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlplatform.cli.arguments import Arguments, suggest
from mlplatform.cli.config import composed
from mlplatform.errors import RunError

if TYPE_CHECKING:
    from PIL import Image

    from mlplatform.data.module import DataModule
    from mlplatform.data.preview import Stretch
    from mlplatform.runs.experiment import Experiment

LEGEND = {color: f"--- {word}: what the loss leaves out" for color, word in ((True, "dim"), (False, "⟦between these⟧"))}


def preview(arguments: Arguments) -> None:
    """Print the rows a run would see first, and draw their images into a folder.

    Raises:
        DataError: none or all of the tokens of documents are targets. RunError: the folder can't be written.
    """
    arguments.plain(most=0)
    count = arguments.whole("samples", 3, least=1)
    result = composed(arguments).check()
    from mlplatform.cli.train import whole
    from mlplatform.data.material import RecordMaterial
    from mlplatform.registry import Spec

    with result.located():
        experiment = Spec.of(whole(result, arguments), "run").build()
        data = experiment.prepare(experiment.check())
    if isinstance(data.material, RecordMaterial):
        _print_records(experiment, data, count, arguments.text("into", ""))
    else:
        _print_documents(data, count)
    suggest(arguments.again("train"))


def _print_documents(data: DataModule, count: int) -> None:
    from mlplatform.data.preview import as_text, preview

    color = sys.stdout.isatty()
    for number, row in enumerate(preview(data, count), 1):
        documents = len({s.document for s in row})
        print(f"--- sample {number}: {_counted(row)}, {documents} document(s)")
        print(as_text(row, color=color))
    print(LEGEND[color])


def _print_records(experiment: Experiment, data: DataModule, count: int, into: str) -> None:
    from mlplatform.data.preview import as_text, samples

    color, drawn, masked = sys.stdout.isatty(), 0, False
    folder = Path(into) if into else experiment.outputs / "previews" / f"{datetime.now():%Y-%m-%d_%H%M%S}"
    for number, sample in enumerate(samples(data, experiment.tools, count), 1):
        print(f"--- sample {number}: {sample.record.place}")
        print("\n".join(sample.told))
        if sample.row:
            tokens = _counted(sample.row) if sample.masked else f"{sum(s.tokens for s in sample.row)} tokens"
            print(f"as the model reads it, {tokens}: {as_text(sample.row, color=color)}")
            masked = masked or sample.masked
        if sample.picture is not None:
            drawn += 1
            print(f"as the model sees it: {_save(sample.picture, folder, number)}")
    told = [LEGEND[color]] if masked else []
    told += [f"--- pictures: {folder}/"] if drawn else []
    print("\n".join(told))


def _counted(row: list[Stretch]) -> str:
    tokens, trained = sum(s.tokens for s in row), sum(s.tokens for s in row if s.trained)
    return f"{tokens} tokens, {trained} of them targets"


def _save(picture: Image.Image, folder: Path, number: int) -> Path:
    path = folder / f"{number:04}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except OSError as error:
        raise RunError(f"--into: {path}: {error.strerror}; name a folder that can be written") from None
    return path


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
