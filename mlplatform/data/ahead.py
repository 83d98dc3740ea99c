"""Reading ahead without worker processes: the next item is made by a thread while the last one is used."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
READER = "reads ahead"
"""The name of the thread."""
LOOK = 0.1
"""Seconds after which a thread with a finished item looks whether anybody still wants it."""
PATIENCE = 5.0
"""Seconds a process that ends waits for its thread: one that is ended within torch takes the process with it."""


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield items in their order, each made by a thread while the one before it is used; its errors are raised here.

    The thread ends when the iterator is closed or forgotten. It makes one item more than was taken, and what is made is
    up to `items`: a source whose items follow from its position alone is not moved by it.
    """
    made: queue.Queue[T | _Raised] = queue.Queue(maxsize=1)
    over = threading.Event()

    def put(item: T | _Raised) -> bool:
        while not over.is_set():
            try:
                made.put(item, timeout=LOOK)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_Raised(StopIteration()))
        except BaseException as error:
            put(_Raised(error))

    thread = threading.Thread(target=work, name=READER, daemon=True)

    def end() -> None:
        over.set()
        thread.join(PATIENCE)

    thread.start()
    atexit.register(end)
    try:
        while True:
            item = made.get()
            if isinstance(item, _Raised):
                if isinstance(item.error, StopIteration):
                    return
                raise item.error
            yield item
    finally:
        over.set()
