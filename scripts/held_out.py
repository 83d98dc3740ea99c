"""What the baselines share: a recipe's records, and how a script is called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mlplatform.cli.compose import compose
from mlplatform.data.records import Reads, Record
from mlplatform.errors import PlatformError, SpecError
from mlplatform.models import build
from mlplatform.registry import Spec

Records = Sequence[Record]


def records_of(overrides: Iterable[str]) -> tuple[dict[str, Any], Reads, Records, Records]:
    """Return a run's config, what its task reads, and its records: those trained on, those held out.

    Raises:
        SpecError: the task learns from documents.
    """
    result = compose("train", list(overrides)).check()
    config = result.config
    with result.located():
        spec, model = Spec(config["task"], "task", "task"), build(config["model"], device="meta")
        task = spec.build(model=model, **({"reference": model} if "reference" in spec.signature.handed else {}))
        if not task.reads_records:
            raise SpecError(f"task={spec.kind} learns from documents; scripts/baselines.py is for them")
        reads = task.reads()
        opened = Spec(config["data"], "data", "data").build().open(reads)
    return config, reads, opened.splits["train"], opened.splits["validation"]


def call(report: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> int:
    """Run a script's report; a mistake in the input is one line and exit code 2."""
    try:
        report(arguments)
    except PlatformError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return error.exit_code
    return 0
