"""A port for processes that are still to start, for seconds in which nothing must take it."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """Return a port nobody listens on, below those that connections get from the system, which would take it."""
    while True:
        port = random.SystemRandom().randrange(12_000, 32_000)
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
