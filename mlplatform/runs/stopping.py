"""SIGTERM and SIGINT outside the training loop, which has its own way with them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def handling(function: Callable[[int, Any], None], *signals: signal.Signals) -> Iterator[None]:
    """Send signals to a function meanwhile; off the main thread, where none may be handled, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, function) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
