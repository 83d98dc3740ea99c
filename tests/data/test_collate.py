from __future__ import annotations

import numpy as np
import pytest
import torch

from mlplatform.data.collate import NextToken, Row, count_bytes, stack
from mlplatform.errors import DataError


def _row(length: int, **more: list[int]) -> Row:
    ids = np.arange(1, length + 1)
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids.copy()}
    return Row(arrays | {name: np.asarray(values) for name, values in more.items()}, 0, 0, 0)


def test_rows_are_padded_to_the_longest_each_key_by_its_own_value() -> None:
    batch = stack([_row(2), _row(3)], filler=9)
    assert batch["input_ids"].tolist() == [[1, 2, 9], [1, 2, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[1, 2, -100], [1, 2, 3]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_key_that_one_row_lacks_is_an_error_not_dropped() -> None:
    with pytest.raises(DataError, match=r"differ in their keys: .*'token_type_ids'"):
        stack([_row(2), _row(2, token_type_ids=[0, 1])], filler=0)


def test_keys_the_collator_does_not_know_are_kept() -> None:
    batch = NextToken(0)([_row(2, token_type_ids=[0, 1]), _row(3, token_type_ids=[1, 1, 1])])
    assert batch["token_type_ids"].tolist() == [[0, 1, 0], [1, 1, 1]]


def test_bytes_are_those_of_the_targets() -> None:
    row = _row(4, token_bytes=[1, 20, 300, 4000])
    row.arrays["labels"][[0, 2]] = -100
    batch = count_bytes(stack([row, row], 0))
    assert "token_bytes" not in batch
    assert int(batch["num_bytes"]) == 2 * 4020
    assert "num_bytes" not in count_bytes(stack([_row(2)], 0))


def test_a_row_draws_by_its_sample_alone() -> None:
    def draw(seed: int, epoch: int, number: int) -> float:
        return Row({}, seed, epoch, number).generator().random()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(s, e, n) for s in range(3) for e in range(3) for n in range(-1, 3)}) == 36
