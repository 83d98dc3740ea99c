"""Data sets as Hugging Face's `datasets` opens them: by name, from a folder, or as `save_to_disk` wrote them.

Their rows are Arrow files, which stay on disk and are mapped into memory. No code that comes with a data set is run:
the library refuses it from version 4 on, and older ones are not taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from mlplatform.data.files import fingerprint
from mlplatform.data.records import RecordSource
from mlplatform.data.sources import Rows
from mlplatform.data.tables import Place, Table
from mlplatform.errors import DataError, did_you_mean, listing
from mlplatform.places import cache
from mlplatform.registry import Fraction, Spec, Text, block

AT_A_TIME = 1000


class HubSet:
    """The splits of one data set, opened when they are asked for.

    Args:
        path: its name on the Hub, or a folder. config: which of its configurations. revision: of the Hub's repository.
    """

    def __init__(self, path: str, config: str | None, revision: str | None) -> None:
        self.path, self.config, self.revision = path, config, revision
        self.name = f"{path}, {config}" if config else path

    def split(self, name: str, key: str) -> Any:
        """Return a split; `key` is the config key that names it.

        Raises:
            DataError: the library is missing, the set can't be found or reached, or it has no such split.
        """
        library = _library()
        folder = Path(self.path).expanduser()
        try:
            if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
                return self._saved(library, folder, name, key)
            local = {"cache_dir": str(cache() / "datasets")} if folder.is_dir() else {"revision": self.revision}
            where = str(folder) if folder.is_dir() else self.path
            return library.load_dataset(where, self.config, split=name, **local)
        except DataError:
            raise
        except Exception as error:  # of as many kinds as there are ways to hold data
            told = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, ConnectionError) or "Couldn't reach" in told:
                told = f"{told}; there is no folder of this name either: without a network, give data.path a folder"
            raise DataError(f"{key}={name} of {self.name}: {told}") from None

    def _saved(self, library: Any, folder: Path, name: str, key: str) -> Any:
        there = library.load_from_disk(str(folder))
        splits = there if isinstance(there, dict) else {"train": there}
        if name not in splits:
            near = did_you_mean(name, splits)
            raise DataError(f"{key}: {folder} has no split '{name}'{near}; it has {listing(splits)}")
        return splits[name]


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        told = "a data set by name needs the package datasets; install it with: pip install 'mlplatform[datasets]'"
        raise DataError(told) from None
    if int(datasets.__version__.split(".")[0]) < 4:
        raise DataError(f"datasets {datasets.__version__} may run code of a data set; install datasets>=4")
    return datasets


def contents(name: str, dataset: Any) -> str:
    """Return a hash of a split's bytes and of what its columns mean. `name` may be a part: `train[:10%]`."""
    files = [fingerprint(Path(file["filename"])) for file in dataset.cache_files]
    said = json.dumps([name, len(dataset), str(dataset.features), files or dataset._fingerprint])
    return hashlib.sha256(said.encode()).hexdigest()


class HubTable:
    """The rows of a split. Classes are given by their names; images and sound stay bytes until they are used."""

    counted = "row"

    def __init__(self, name: str, dataset: Any) -> None:
        self.name, self.folder = name, Path()
        self.rows = dataset.with_format("arrow")
        self.classes = classes_of(dataset.features)

    def scan(self) -> Iterator[tuple[Place, dict[str, Any] | ValueError]]:
        for start in range(0, len(self.rows), AT_A_TIME):
            part = self.rows[start : start + AT_A_TIME].to_pylist()
            for number, row in enumerate(part, start):
                yield Place(number, number + 1), self._named(row)

    def read(self, key: int) -> dict[str, Any]:
        return self._named(self.rows[key].to_pylist()[0])

    def _named(self, row: dict[str, Any]) -> dict[str, Any]:
        for column, names in self.classes.items():
            row[column] = _name(row[column], names)
        return row


def classes_of(features: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes of each column that holds some, alone or in lists."""
    found = {}
    for column, feature in features.items():
        inner = getattr(feature, "feature", feature)
        if names := getattr(inner, "names", None):
            found[column] = tuple(names)
    return found


def _name(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_name(one, names) for one in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None  # -1 is unlabelled


@block("data/hf_dataset")
class HubRecords(RecordSource):
    """Records of a data set that Hugging Face's `datasets` opens. Its own names of classes are kept, in their order.

    Args:
        path: its name on the Hub, a folder of CSV, JSON Lines or Parquet files, or one that `save_to_disk` wrote.
        config: which of its configurations, where it has several.
        split: the split to train on; a part of it, too: `train[:10%]`.
        validation, test: the share of its records held out by a hash of their content, or the name of a split.
        revision: a commit or tag of the Hub's repository.
        fields: field of the task -> column, where they differ: `{text: review, label: stars}`.
        steps: changes of rows, in order.
        classes: the names of the classes, in the order of their numbers; null takes the set's own.
        on_bad_row: what a row that can't be used does: stop with its number, or be left out and counted.
    """

    def __init__(
        self,
        *,
        path: Text,
        config: Text | None = None,
        split: Text = "train",
        validation: Fraction | Text = 0.1,
        test: Fraction | Text = 0.0,
        revision: Text | None = None,
        fields: dict[str, Text] = {},  # noqa: B006  (read as data, never changed)
        steps: list[Annotated[Spec, "step"]] = [],  # noqa: B006
        classes: list[Text] | None = None,
        on_bad_row: Literal["error", "skip"] = "error",
    ) -> None:
        held = HubSet(path, config, revision)
        self.name = held.name
        named = {"train": split, "validation": validation, "test": test}
        self.names = {part: name for part, name in named.items() if isinstance(name, str)}
        self.splits = {
            part: held.split(name, "data.split" if part == "train" else f"data.{part}")
            for part, name in self.names.items()
        }
        super().__init__(
            validation=0.0 if isinstance(validation, str) else validation,
            test=0.0 if isinstance(test, str) else test,
            fields=fields,
            steps=steps,
            classes=classes,
            skip=on_bad_row == "skip",
            options={},
        )

    def tables(self) -> dict[str, list[Table]]:
        return {part: [HubTable(f"{self.name}: {self.names[part]}", held)] for part, held in self.splits.items()}

    def content(self) -> str:
        parts = [f"{part} {contents(self.names[part], held)}" for part, held in self.splits.items()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def known_classes(self) -> dict[str, tuple[str, ...]]:
        return classes_of(self.splits["train"].features)


@block("data/hf_documents")
class HubDocuments(Rows):
    """Documents of a data set that Hugging Face's `datasets` opens: one a row, the text in one column.

    Args:
        path: its name on the Hub, a folder of CSV, JSON Lines or Parquet files, or one that `save_to_disk` wrote.
        config: which of its configurations, where it has several.
        split: the split to train on; a part of it, too: `train[:10%]`.
        field: the column of the text.
        validation: the share of documents held out by a hash of their text, or the name of a split.
        revision: a commit or tag of the Hub's repository.
        on_bad_row: what a row without a usable text does: stop with its number, or be left out and counted.
    """

    def __init__(
        self,
        *,
        path: Text,
        config: Text | None = None,
        split: Text = "train",
        field: Text = "text",
        validation: Fraction | Text = 0.1,
        revision: Text | None = None,
        on_bad_row: Literal["error", "skip"] = "error",
    ) -> None:
        held = HubSet(path, config, revision)
        self.title = held.name
        names = {False: split} | ({True: validation} if isinstance(validation, str) else {})
        self.splits = {
            held_out: (name, held.split(name, "data.validation" if held_out else "data.split"))
            for held_out, name in names.items()
        }
        for name, rows in self.splits.values():
            if field not in rows.column_names:
                near = did_you_mean(field, rows.column_names)
                told = f"no column '{field}'{near}; it has {listing(rows.column_names)}"
                raise DataError(f"{held.name}: {name}: {told} (data.field names the text)")
        share = 0.0 if isinstance(validation, str) else validation
        self._set(share, {"field": field, "on_bad_row": on_bad_row})
        self.files = [Path(file["filename"]) for _, rows in self.splits.values() for file in rows.cache_files]

    @property
    def name(self) -> str:
        return self.title

    def contents(self) -> list[str]:
        return [f"{held_out} {contents(name, rows)}" for held_out, (name, rows) in self.splits.items()]

    def streams(self) -> Iterator[tuple[bool, Iterator[str]]]:
        for held_out, (name, rows) in self.splits.items():
            yield held_out, self._rows(f"{self.title}: {name}", rows.select_columns([self.field]).with_format("arrow"))

    def _rows(self, name: str, rows: Any) -> Iterator[str]:
        for start in range(0, len(rows), AT_A_TIME):
            for number, value in enumerate(rows[start : start + AT_A_TIME].column(0).to_pylist(), start + 1):
                try:
                    yield self._text(value)
                except ValueError as error:
                    self._bad(name, f"row {number}", error)
