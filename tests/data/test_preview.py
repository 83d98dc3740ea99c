from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mlplatform.data.collate import NextToken, Row, count_bytes, stack
from mlplatform.data.material import DocumentMaterial
from mlplatform.data.module import DataModule
from mlplatform.data.preview import as_text, preview, stretches
from mlplatform.data.sources import Source
from mlplatform.errors import DataError
from mlplatform.processors.tokenizer import Tokenizer
from mlplatform.registry import Spec


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_rows_shown_are_those_trained_on(make_module: Callable[..., DataModule], layout: str) -> None:
    module = make_module(layout=layout, length=256)
    shown = list(preview(module, 8))
    step = next(iter(module.train_dataloader()))
    ids = [row for batch in step for row in batch["input_ids"]]
    for row, stretch in zip(ids, shown, strict=True):
        text = module.tokenizer.decode(row[row != module.tokenizer.pad], specials=True)
        assert "".join(part.text for part in stretch) == text
        assert sum(part.tokens for part in stretch) == int((row != module.tokenizer.pad).sum())
    begins = [part for row in shown for part in row if part.text.startswith("<|bos|>")]
    assert begins
    assert not any(part.trained for part in begins)


def test_a_terminal_sees_what_is_trained_and_no_control_characters(bpe: Tokenizer) -> None:
    ids = np.asarray([bpe.bos, *bpe.encode("ab\x1b[2J", specials=False), bpe.eos, bpe.bos, bpe.pad, bpe.pad])
    documents = np.asarray([*[1] * (len(ids) - 3), 2, 0, 0])
    trained = (documents == 1) & (np.arange(len(ids)) > 0)
    row = stretches(bpe, ids, trained, documents)
    assert as_text(row, color=False) == "⟦<|bos|>⟧ab�[2J<|eos|>\n⟦<|bos|>⟧"
    assert as_text(row, color=True).startswith("\x1b[2;7m<|bos|>\x1b[0mab")


class OnlyLast(NextToken):
    """A task that trains on no token of the first rows it is shown, and on all others."""

    def __call__(self, rows: list[Row]) -> dict[str, object]:  # type: ignore[override]
        batch = stack(rows, self.filler)
        batch["labels"][: min(3, len(rows))] = -100
        return count_bytes(batch)  # type: ignore[return-value]


def test_rows_without_a_target_are_an_error(source: Source, bpe: Tokenizer) -> None:
    shape = Spec.of({"kind": "rows", "length": 32}, "batch", "batch")
    module = DataModule(DocumentMaterial(source, bpe), shape, OnlyLast(bpe.filler), 0, 0, 1)
    module.setup()
    with pytest.raises(DataError, match=r"^0% of the tokens would be trained"):
        list(preview(module, 3))
