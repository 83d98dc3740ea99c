"""`mlplatform data show`: the first samples of training, decoded, with what the loss leaves out marked."""

from __future__ import annotations

import sys

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
