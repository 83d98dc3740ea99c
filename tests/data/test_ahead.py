"""Reading one item ahead: the order and the errors are as without, and the thread ends with its iterator."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import count, islice

import pytest

from mlplatform.data.ahead import one_ahead
from mlplatform.errors import DataError


def reading(ends: set[threading.Thread]) -> set[threading.Thread]:
    """Return the threads that read, but for those that are about to end."""
    return {thread for thread in threading.enumerate() if thread.name == "reads ahead"} - ends


def test_items_come_in_order_and_end() -> None:
    assert list(one_ahead(range(50))) == list(range(50))


def test_the_next_item_is_made_while_one_is_used() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in count():
            made.append(number)
            yield number

    ahead = one_ahead(items())
    assert next(ahead) == 0
    waited = time.monotonic()
    while len(made) < 3 and time.monotonic() - waited < 10:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2], "one waits to be taken, and one to be put down"
    ahead.close()  # type: ignore[attr-defined]


def test_an_error_comes_where_its_item_would() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise DataError("rows.jsonl: line 4: bad")

    ahead = one_ahead(items())
    assert list(islice(ahead, 3)) == [0, 1, 2]
    with pytest.raises(DataError, match="line 4: bad"):
        next(ahead)


def test_the_thread_ends_with_the_iterator() -> None:
    before = reading(set())
    ahead = one_ahead(count())
    next(ahead)
    [thread] = reading(before)
    del ahead
    thread.join(timeout=20)
    assert not thread.is_alive()
