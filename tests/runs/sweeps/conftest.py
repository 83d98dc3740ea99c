"""Makes the small runs and the jobs importable, here and in the trials' own processes, and starts their server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """Start what the trials' processes are copied from, before a test starts one that imports torch each time.

    It ends with the module: it hears no SIGTERM, so the processes other tests copy from it would not either.
    """
    from mlplatform.runs.sweeps.trial import processes

    _end()
    processes()
    yield
    _end()
    processes.cache_clear()


def _end() -> None:
    """End the process everything is copied from in this interpreter, if there is one."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]
