"""Records from tables: CSV, JSON Lines and Parquet files, and digits that come with a package."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from mlplatform.data.files import check_apart, find, fingerprint
from mlplatform.data.records import RecordSource
from mlplatform.data.tables import CSVTable, JSONTable, ListTable, ParquetTable, Table
from mlplatform.errors import DataError
from mlplatform.registry import Fraction, Spec, Text, block

HeldOut = float | str | list[str]


class TableFiles(RecordSource):
    """Files of rows. Subclasses say how one is read.

    Args:
        path: a file, a folder, a glob or a list of them.
        validation, test: the share of records held out by a hash of their content, or the path of files.
        fields: field of the task -> column of the files, where they differ: `{text: review, label: stars}`.
        steps: changes of rows, in order.
        classes: the names of the classes, in the order of their numbers; null takes those of the train split, sorted.
        on_bad_row: what a row that can't be used does: stop with its number, or be left out and counted.
    """

    suffixes: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        path: Text | list[Text],
        validation: Fraction | Text | list[Text] = 0.1,
        test: Fraction | Text | list[Text] = 0.0,
        fields: dict[str, Text] = {},  # noqa: B006  (read as data, never changed)
        steps: list[Annotated[Spec, "step"]] = [],  # noqa: B006
        classes: list[Text] | None = None,
        on_bad_row: Literal["error", "skip"] = "error",
    ) -> None:
        self._set(path, validation, test, fields, steps, classes, on_bad_row, {})

    def _set(
        self,
        path: str | list[str],
        validation: HeldOut,
        test: HeldOut,
        fields: dict[str, str],
        steps: list[Any],
        classes: list[str] | None,
        on_bad_row: str,
        options: dict[str, Any],
    ) -> None:
        self.files = {"train": find(path, self.suffixes, "data.path")}
        for split, given in (("validation", validation), ("test", test)):
            self.files[split] = [] if isinstance(given, int | float) else find(given, self.suffixes, f"data.{split}")
        check_apart(self.files)
        first = self.files["train"][0].name
        self.name = first if len(self.files["train"]) == 1 else f"{first} and {len(self.files['train']) - 1} more"
        super().__init__(
            validation=float(validation) if isinstance(validation, int | float) else 0.0,
            test=float(test) if isinstance(test, int | float) else 0.0,
            fields=fields,
            steps=steps,
            classes=classes,
            skip=on_bad_row == "skip",
            options=options,
        )

    def table(self, file: Path) -> Table:
        """Return one file's rows."""
        raise NotImplementedError

    def tables(self) -> dict[str, list[Table]]:
        return {split: [self.table(file) for file in files] for split, files in self.files.items()}

    def content(self) -> str:
        parts = [f"{split} {fingerprint(file)}" for split, files in self.files.items() for file in files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@block("data/csv")
class CSVFiles(TableFiles):
    """Files of values between commas or tabs, the columns' names in the first line.

    Args:
        path: a file, a folder, a glob or a list of them.
        delimiter: what stands between two values; null for a tab in .tsv files and a comma in others.
        quoted: whether values may stand in quotes, and then hold delimiters and line breaks.
        validation, test: the share of records held out by a hash of their content, or the path of files.
        fields: field of the task -> column of the files, where they differ: `{text: review, label: stars}`.
        steps: changes of rows, in order.
        classes: the names of the classes, in the order of their numbers; null takes those of the train split, sorted.
        on_bad_row: what a row that can't be used does: stop with its number, or be left out and counted.
    """

    suffixes = (".csv", ".tsv")

    def __init__(
        self,
        *,
        path: Text | list[Text],
        delimiter: Text | None = None,
        quoted: bool = True,
        validation: Fraction | Text | list[Text] = 0.1,
        test: Fraction | Text | list[Text] = 0.0,
        fields: dict[str, Text] = {},  # noqa: B006
        steps: list[Annotated[Spec, "step"]] = [],  # noqa: B006
        classes: list[Text] | None = None,
        on_bad_row: Literal["error", "skip"] = "error",
    ) -> None:
        if delimiter is not None and len(delimiter) != 1:
            raise DataError(f"data.delimiter={delimiter!r} is one character")
        self.delimiter, self.quoted = delimiter, quoted
        options = {"delimiter": delimiter, "quoted": quoted}
        self._set(path, validation, test, fields, steps, classes, on_bad_row, options)

    def table(self, file: Path) -> Table:
        return CSVTable(file, self.delimiter or ("\t" if file.suffix == ".tsv" else ","), self.quoted)


@block("data/json_rows")
class JSONRows(TableFiles):
    """JSON Lines files: one object a line, one record an object. Fields as in `csv`."""

    suffixes = (".jsonl", ".ndjson")

    def table(self, file: Path) -> Table:
        return JSONTable(file)


@block("data/parquet_rows")
class ParquetRows(TableFiles):
    """Parquet files: one record a row. Fields as in `csv`."""

    suffixes = (".parquet",)

    def table(self, file: Path) -> Table:
        return ParquetTable(file)


@block("data/digits")
class Digits(RecordSource):
    """1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn (UCI, CC BY 4.0): `image`, `label`.

    Args:
        validation, test: the share of records held out by a hash of their content.
        steps: changes of rows, in order.
    """

    name = "digits"

    def __init__(
        self,
        *,
        validation: Fraction = 0.2,
        test: Fraction = 0.0,
        steps: list[Annotated[Spec, "step"]] = [],  # noqa: B006
    ) -> None:
        super().__init__(validation=validation, test=test, fields={}, steps=steps, classes=None, skip=False, options={})

    def tables(self) -> dict[str, list[Table]]:
        rows = [{"image": image, "label": label} for image, label in zip(*load_digits(), strict=True)]
        return {"train": [ListTable(self.name, rows)]}

    def content(self) -> str:
        digest = hashlib.sha256()
        for image, label in zip(*load_digits(), strict=True):
            digest.update(image.tobytes() + bytes([label]))
        return digest.hexdigest()


def load_digits() -> tuple[Any, list[int]]:
    """Return scikit-learn's digits: pixels (1797, 8, 8) of bytes, and what each is. Raises DataError without it."""
    try:
        from sklearn import datasets
    except ImportError:
        raise DataError("these digits need scikit-learn; install it with: pip install 'mlplatform[data]'") from None
    held: Any = datasets.load_digits()
    return (held.images * (255 / 16)).round().astype("uint8"), [int(label) for label in held.target]  # of 17 levels
